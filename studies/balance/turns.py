"""Build conversations of all six categories for the demo's small model.

    calumma demo --out out/demo                                          the pre-trained model
    python studies/balance/turns.py --demo out/demo --out out/balance    the conversations

Writes `train.parquet`, `held-out.parquet` and `shards/` of the training conversations to OUT. Held
out are captions, dictionary words, pages of documentation and safety prompts that do not occur in
training.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from calumma.corpora.captions import normalize_caption
from calumma.corpora.instructions import image_conversations
from calumma.corpora.instructions.embedded_conversations import embedded_conversations
from calumma.corpora.instructions.text_conversations import SourceInfo, make_conversation
from calumma.corpora.still_life import StillLife
from calumma.demo.scenes import SceneRenderer, load_scenes, scene_caption
from calumma.documents.document import Document, Image, Text
from calumma.documents.writers import write_parquet
from calumma.shards.executors import build_local
from calumma.shards.tasks import BuildJob

MAX_CHARS = 110
"""Maximum characters of a prompt and its answer, so that 240 tokens hold them."""

MAX_CONVERSATIONS = 1500
"""Maximum training conversations of a category; held-out ones are a fifth of that."""

MAX_GLOSS_CHARS = 60
"""Maximum characters of the gloss of an object next to its image."""


def scene_conversations(scenes: Iterable[StillLife], renderer: SceneRenderer, split: str) -> Iterator[Document]:
    """Yield visual chat, image generation and interleaved conversations of the demo's scenes."""
    chosen = list(scenes)
    pairs = [_captioned(renderer.pair(scene), scene, split) for scene in chosen]
    glosses = image_conversations.noun_glosses(_pages())
    gloss_of = {
        normalize_caption(scene_caption(scene)): glosses[thing.kind]
        for scene in chosen
        if scene.layout == "single" and (thing := scene.things[0]).kind in glosses
    }
    for scene, pair in zip(chosen, pairs, strict=True):
        yield from image_conversations.visual_chat(pair)
        yield image_conversations.image_request(pair)
        question = [pair.images[0], "What color is the background?"]
        source = SourceInfo(name=pair.id, license=pair.license, split=split)  # type: ignore[arg-type]
        yield make_conversation("visual_chat", "background", question, [scene.background], source)
        explanation = image_conversations.explain_with_image(pair, gloss_of)
        if explanation is not None and len(gloss_of[normalize_caption(scene_caption(scene))]) <= MAX_GLOSS_CHARS:
            yield explanation
    yield from image_conversations.show_pairs(pairs)


def _captioned(pair: Document, scene: StillLife, split: str) -> Document:
    return replace(pair, attributes={"caption": scene_caption(scene), "split": split}, license="MIT")


def _pages() -> list[Document]:
    from calumma.corpora.embedded import load_embedded

    return [page for page in load_embedded("text", "train") if page.source == "wordnet"]


def num_chars(document: Document) -> int:
    """Return the number of characters of a conversation."""
    return sum(len(part.text) for part in document.parts() if isinstance(part, Text))


def build_conversations(limit: int) -> Iterator[Document]:
    """Yield all conversations; the attribute "split" is "train" or "held-out"."""
    chosen = load_scenes()
    renderer = SceneRenderer()
    for category in ("text", "code", "safety"):
        fitting = [d for d in embedded_conversations(category) if num_chars(d) <= MAX_CHARS]
        for split, limit_of_split in (("train", limit), ("held-out", limit // 5)):
            of_split = [d for d in fitting if d.attributes["split"] == split]
            yield from (
                of_split[:: max(1, len(of_split) // limit_of_split)][:limit_of_split]
                if category != "safety"
                else of_split
            )
    scenes = {"train": chosen.train[: 2 * limit], "held-out": chosen.held_out[: 2 * limit]}
    for split, some in scenes.items():
        yield from scene_conversations(some, renderer, split)


def has_few_images(document: Document) -> bool:
    """Return whether a conversation fits the sequence length of the demo."""
    return sum(isinstance(part, Image) for part in document.parts()) <= 2


def prepare(demo: Path, out: Path, limit: int = MAX_CONVERSATIONS) -> None:
    """Write the documents and build the shards unless they exist."""
    if (out / "shards" / "manifest.json").is_file():
        return
    conversations = [d for d in build_conversations(limit) if has_few_images(d) and num_chars(d) <= 2 * MAX_CHARS]
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "held-out"):
        of_split = [d for d in conversations if d.attributes["split"] == split]
        write_parquet(out / f"{split}.parquet", of_split)
    job = BuildJob(out=out / "shards", tokenizers=demo / "tokenizers")
    build_local(job, [out / "train.parquet"], 1)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prepare(args.demo, args.out)


if __name__ == "__main__":
    main()
