"""Conversations of all six categories for the demo's small model: its own pictures, short texts.

    calumma demo --out out/demo                                          the model to start from
    python studies/balance/turns.py --demo out/demo --out out/balance    these conversations

OUT gets `train.parquet`, `held-out.parquet` and `shards/` of the former. What is held out are
captions, dictionary words, pages of documentation and safety prompts that never occur in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from calumma.corpora.captions import normalize_caption
from calumma.corpora.instructions import image_conversations
from calumma.corpora.instructions.conversation_templates import SourceInfo, make_conversation
from calumma.corpora.instructions.embedded_conversations import embedded_conversations
from calumma.corpora.synthetic_scenes import Scene
from calumma.demo.scenes import SceneRenderer, load_scenes
from calumma.documents.document import Document, Image, Text
from calumma.documents.writers import write_parquet
from calumma.shards.executors import build_local
from calumma.shards.tasks import BuildJob

LONGEST = 110
"""Letters of a prompt and its answer together, so that the demo's rows of 240 ids hold them."""

MOST = 1500
"""Training conversations of a category, and held-out ones times ten, at most."""

GLOSS = 60
"""Letters of what is told of a thing beside its picture, at most."""


def scene_turns(scenes: Iterable[Scene], painter: SceneRenderer, split: str) -> Iterator[Document]:
    """Visual chat, drawing and text with pictures, of the demo's composed scenes."""
    chosen = list(scenes)
    pairs = [_captioned(painter.pair(scene), scene, split) for scene in chosen]
    glosses = image_conversations.noun_glosses(_pages())
    told = {normalize_caption(s.caption): glosses[s.thing] for s in chosen if s.thing in glosses}
    for scene, pair in zip(chosen, pairs, strict=True):
        yield from image_conversations.visual_chat(pair)
        yield image_conversations.image_request(pair)
        asked = [pair.images[0], "What colour is the ground?"]
        of = SourceInfo(name=pair.id, license=pair.license, split=split)  # type: ignore[arg-type]
        yield make_conversation("visual_chat", "ground", asked, [scene.ground], of)
        telling = image_conversations.explain_with_image(pair, told)
        if telling is not None and len(told[normalize_caption(scene.caption)]) <= GLOSS:
            yield telling
    yield from image_conversations.show_pairs(pairs)


def _captioned(pair: Document, scene: Scene, split: str) -> Document:
    return replace(pair, attributes={"caption": scene.caption, "split": split}, license="MIT")


def _pages() -> list[Document]:
    from calumma.corpora.embedded import load_embedded

    return [page for page in load_embedded("text", "train") if page.source == "wordnet"]


def letters(document: Document) -> int:
    """Letters of a conversation."""
    return sum(len(part.text) for part in document.parts() if isinstance(part, Text))


def documents(limit: int) -> Iterator[Document]:
    """All conversations; attribute "split" says which are held out."""
    chosen = load_scenes()
    painter = SceneRenderer(chosen.objects)
    for category in ("text", "code", "safety"):
        fitting = [d for d in embedded_conversations(category) if letters(d) <= LONGEST]
        for split, most in (("train", limit), ("held-out", limit // 5)):
            mine = [d for d in fitting if d.attributes["split"] == split]
            yield from mine[:: max(1, len(mine) // most)][:most] if category != "safety" else mine
    scenes = {"train": chosen.train[: 2 * limit], "held-out": chosen.held_out[: 2 * limit]}
    for split, some in scenes.items():
        yield from scene_turns(some, painter, split)


def few_pictures(document: Document) -> bool:
    """Whether a conversation fits a row of the demo."""
    return sum(isinstance(part, Image) for part in document.parts()) <= 2


def prepare(demo: Path, out: Path, limit: int = MOST) -> None:
    """Write the documents and build the shards, unless that is done."""
    if (out / "shards" / "manifest.json").is_file():
        return
    made = [d for d in documents(limit) if few_pictures(d) and letters(d) <= 2 * LONGEST]
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "held-out"):
        mine = [d for d in made if d.attributes["split"] == split]
        write_parquet(out / f"{split}.parquet", mine)
    job = BuildJob(out=out / "shards", tokenizers=demo / "tokenizers")
    build_local(job, [out / "train.parquet"], 1)


def main() -> None:
    """Prepare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prepare(args.demo, args.out)


if __name__ == "__main__":
    main()
