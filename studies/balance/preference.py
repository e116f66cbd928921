"""Preference tuning on real comparisons: short words, and the picture that was asked for.

    python studies/balance/preference.py --demo out/demo --out out/balance

Goes on from categories.py's model. It answers training prompts for a word's meaning, and for words
with a picture, four times each. By rule (no person judged) the best of the four is the one that
ends, gives the picture that was asked for, with the ground that was asked for, and has the fewest
letters; the worst is rejected. DPO learns from these pairs. On held-out prompts an answer counts as
preferred if it is right and no longer than half of the answers to the training prompts were:
`preference.json` has the figures before and after. `--quick` is a smoke test.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL.Image
import torch
from prompting import PromptAnswer, answer_prompts, held_out_documents, proportion, table_row

from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.documents.document import Document, Image, Part, Text
from calumma.documents.image_formats import encode_png
from calumma.documents.preferences import Preference, write_preferences
from calumma.documents.readers import read_documents
from calumma.evaluate.color import background_color
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, TextSampling
from calumma.toml_config import load_config
from calumma.train.config_dpo import DPOTrainConfig
from calumma.train.dpo import train_dpo

CONFIG = Path(__file__).parent / "preference.toml"
PROMPTS, ANSWERS, MOST = 50, 4, 100
KINDS = {"meaning": 0, "tell": 1}
"""Prompts, and how many pictures are to be in their answers."""

AS_IT_IS = {
    "text": TextSampling(temperature=1.0, top_p=1.0, repetition_penalty=1.0),
    "image": ImageSampling(
        temperature=1.0, top_p=1.0, guidance_scale=1.0, image_guidance_scale=1.0
    ),
    "max_new_tokens": 160,
}
"""Drawn from the model's own distribution, which is what DPO changes."""


def asked_ground(document: Document) -> str:
    """The colour of ground that a prompt asks for, or nothing."""
    asked = " ".join(part.text for part in document.messages[0].parts if isinstance(part, Text))
    found = re.search(r"on an? (\w+) ground", asked)
    return found[1] if found else ""


def is_right(answer: PromptAnswer) -> bool:
    """Whether an answer ended and has words, and the pictures that were asked for."""
    pictures = [part for part in answer.sample.parts if isinstance(part, PIL.Image.Image)]
    ground = asked_ground(answer.document)
    drawn = all(background_color(picture) == ground for picture in pictures)
    expected = KINDS[answer.document.attributes["kind"]]
    return answer.is_finished and bool(answer.text) and len(pictures) == expected and drawn


def compared(model: Model, prompts: Sequence[Document]) -> tuple[list[Preference], dict[str, int]]:
    """A pair for each prompt whose answers differ; and the letters of the middle answer by kind."""
    repeated = [prompt for prompt in prompts for _ in range(ANSWERS)]
    answers = answer_prompts(model, repeated, **AS_IT_IS)
    pairs = []
    for number, prompt in enumerate(prompts):
        mine = answers[number * ANSWERS : (number + 1) * ANSWERS]
        ranked = sorted(mine, key=lambda answer: (not is_right(answer), len(answer.text)))
        chosen, rejected = ranked[0], ranked[-1]
        if is_right(chosen) and (not is_right(rejected) or rejected.text != chosen.text):
            pairs.append(
                Preference(
                    id=prompt.id,
                    prompt=prompt.messages[0].parts,
                    chosen=_parts(chosen),
                    rejected=_parts(rejected),
                    source="rule: right, and short",
                )
            )
    middle = {
        kind: int(median(len(a.text) for a in answers if a.document.attributes["kind"] == kind))
        for kind in KINDS
    }
    return pairs, middle


def _parts(answer: PromptAnswer) -> tuple[Part, ...]:
    made: list[Part] = []
    for part in answer.sample.parts:
        made.append(Text(part) if isinstance(part, str) else Image(data=encode_png(part)))
    return tuple(made) or (Text(""),)


def pairs_of(model: Model, out: Path, count: int) -> tuple[Path, dict[str, int]]:
    """The file of pairs and the letters of the middle answers, made where they are not there."""
    path, about = out / "pairs.jsonl", out / "pairs.json"
    if not about.is_file():
        train = list(read_documents([out / "train.parquet"]))
        some = []
        for kind in KINDS:
            mine = [d for d in train if d.attributes["kind"] == kind]
            some += mine[:: max(1, len(mine) // count)][:count]
        pairs, middle = compared(model, some)
        write_preferences(path, pairs)
        about.write_text(json.dumps(middle))
    return path, json.loads(about.read_text())


def difference(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """By how much the share rose, with a 95 % interval over prompts drawn again and again."""
    gains = np.array(after, dtype=float) - np.array(before, dtype=float)
    drawn = np.random.default_rng(0).integers(len(gains), size=(2000, len(gains)))
    low, high = np.quantile(gains[drawn].mean(axis=1), [0.025, 0.975])
    name = "rise of the preferred answers' share"
    interval = [float(low), float(high)]
    return {"name": name, "value": float(gains.mean()), "n": len(gains), "interval": interval}


def main() -> None:
    """Compare, tune, and ask again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("changes", nargs="*", help="of the config, behind --")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = load_model(args.out / "categories" / "model")
    model = Model(start)
    pairs, middle = pairs_of(model, args.out, 8 if args.quick else PROMPTS)
    most = 1 if args.quick else MOST
    prompts = [d for kind in KINDS for d in held_out_documents(args.out, kind, most)]
    words = [
        d for kind in ("describe", "word", "plain") for d in held_out_documents(args.out, kind, 30)
    ]
    before = answer_prompts(model, prompts, **AS_IT_IS)
    quick = ["--steps", "2", "--pairs-per-step", "2"] if args.quick else []
    places = ["--model", f"{args.out}/categories/model", "--dpo.pairs", f'["{pairs}"]']
    config = load_config(DPOTrainConfig, CONFIG, [*places, *quick, *args.changes])
    decoder = train_dpo(config, load_model(config.model), args.out / "preferred")
    assert decoder is not None, "one process"
    made = ModelComponents(decoder, start.tokenizers)
    save_model(args.out / "preferred" / "model", made)
    tuned = Model(made)
    after = answer_prompts(tuned, prompts, **AS_IT_IS)
    others = [answer.has_image for answer in answer_prompts(tuned, words[: 3 * most])]

    def preferred(answer: PromptAnswer) -> bool:
        return is_right(answer) and len(answer.text) <= middle[answer.document.attributes["kind"]]

    hits = [[preferred(answer) for answer in some] for some in (before, after)]
    right = [[is_right(answer) for answer in some] for some in (before, after)]
    results = [
        proportion("preferred, before", hits[0]),
        proportion("preferred, after", hits[1]),
        difference(*hits),
        proportion("right, before", right[0]),
        proportion("right, after", right[1]),
        proportion("ends by itself, before", [answer.is_finished for answer in before]),
        proportion("ends by itself, after", [answer.is_finished for answer in after]),
        proportion("asked for words, draws none, after", [not drew for drew in others]),
    ]
    count = len(pairs.read_text(encoding="utf-8").splitlines())
    (args.out / "preference.json").write_text(
        json.dumps({"pairs": count, "figures": results}, indent=1)
    )
    print(f"{count} pairs", *map(table_row, results), sep="\n")


if __name__ == "__main__":
    main()
