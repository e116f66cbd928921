"""Preference tuning (DPO) on compared samples: short text, and the requested image.

    python studies/balance/preference.py --demo out/demo --out out/balance

Starts from the model of categories.py and samples four answers to each of its training prompts for
the meaning of a word and for text with an image. A rule ranks them: correct answers first
(finished, with the requested image and background color), then by length; best and worst are a pair
for DPO.
On held-out prompts an answer counts as preferred if it is correct and no longer than the median
answer to the training prompts; `preference.json` has the results before and after. `--quick` is a
smoke test.
"""

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
from calumma.evaluate.color_accuracy import background_color
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, TextSampling
from calumma.toml_config import load_config
from calumma.train.config_dpo import DPOTrainConfig
from calumma.train.dpo import train_dpo

CONFIG = Path(__file__).parent / "preference.toml"
PROMPTS_PER_KIND, ANSWERS_PER_PROMPT, NUM_HELD_OUT = 50, 4, 100
KINDS = {"meaning": 0, "tell": 1}
"""Kinds of prompts, and the number of images in a correct answer."""

SAMPLING = {
    "text": TextSampling(temperature=1.0, top_p=1.0, repetition_penalty=1.0),
    "image": ImageSampling(temperature=1.0, top_p=1.0, guidance_scale=1.0, image_guidance_scale=1.0),
    "max_new_tokens": 160,
}
"""Samples of the unmodified distribution, which is what DPO changes."""


def requested_background(document: Document) -> str:
    """Return the background color that a prompt requests, or \"\"."""
    prompt = " ".join(part.text for part in document.messages[0].parts if isinstance(part, Text))
    found = re.search(r"on an? (\w+) ground", prompt)
    return found[1] if found else ""


def is_correct(answer: PromptAnswer) -> bool:
    """Return whether an answer is finished and has text and the requested image."""
    images = [part for part in answer.sample.parts if isinstance(part, PIL.Image.Image)]
    background = requested_background(answer.document)
    has_background = all(background_color(image) == background for image in images)
    expected = KINDS[answer.document.attributes["kind"]]
    return answer.is_finished and bool(answer.text) and len(images) == expected and has_background


def build_pairs(model: Model, prompts: Sequence[Document]) -> tuple[list[Preference], dict[str, int]]:
    """Return a pair for each prompt whose answers differ, and the median length by kind."""
    repeated = [prompt for prompt in prompts for _ in range(ANSWERS_PER_PROMPT)]
    answers = answer_prompts(model, repeated, **SAMPLING)
    pairs = []
    for number, prompt in enumerate(prompts):
        own = answers[number * ANSWERS_PER_PROMPT : (number + 1) * ANSWERS_PER_PROMPT]
        ranked = sorted(own, key=lambda answer: (not is_correct(answer), len(answer.text)))
        chosen, rejected = ranked[0], ranked[-1]
        if is_correct(chosen) and (not is_correct(rejected) or rejected.text != chosen.text):
            pairs.append(
                Preference(
                    id=prompt.id,
                    prompt=prompt.messages[0].parts,
                    chosen=_parts(chosen),
                    rejected=_parts(rejected),
                    source="rule: correct, then short",
                )
            )
    median_lengths = {
        kind: int(median(len(a.text) for a in answers if a.document.attributes["kind"] == kind)) for kind in KINDS
    }
    return pairs, median_lengths


def _parts(answer: PromptAnswer) -> tuple[Part, ...]:
    parts: list[Part] = []
    for part in answer.sample.parts:
        parts.append(Text(part) if isinstance(part, str) else Image(data=encode_png(part)))
    return tuple(parts) or (Text(""),)


def load_or_build_pairs(model: Model, out: Path, count: int) -> tuple[Path, dict[str, int]]:
    """Return the file of pairs and the median lengths, and build them if they do not exist."""
    path, lengths_path = out / "pairs.jsonl", out / "pairs.json"
    if not lengths_path.is_file():
        train = list(read_documents([out / "train.parquet"]))
        some = []
        for kind in KINDS:
            of_kind = [d for d in train if d.attributes["kind"] == kind]
            some += of_kind[:: max(1, len(of_kind) // count)][:count]
        pairs, median_lengths = build_pairs(model, some)
        write_preferences(path, pairs)
        lengths_path.write_text(json.dumps(median_lengths))
    return path, json.loads(lengths_path.read_text())


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Return the increase of a proportion, with a bootstrap 95 % interval over prompts."""
    gains = np.array(after, dtype=float) - np.array(before, dtype=float)
    resampled = np.random.default_rng(0).integers(len(gains), size=(2000, len(gains)))
    low, high = np.quantile(gains[resampled].mean(axis=1), [0.025, 0.975])
    name = "increase of preferred answers"
    interval = [float(low), float(high)]
    return {"name": name, "value": float(gains.mean()), "n": len(gains), "interval": interval}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*", help="options of the config, after --")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = load_model(args.out / "categories" / "model")
    model = Model(start)
    pairs, median_lengths = load_or_build_pairs(model, args.out, 8 if args.quick else PROMPTS_PER_KIND)
    num_held_out = 1 if args.quick else NUM_HELD_OUT
    prompts = [d for kind in KINDS for d in held_out_documents(args.out, kind, num_held_out)]
    words = [d for kind in ("describe", "word", "plain") for d in held_out_documents(args.out, kind, 30)]
    before = answer_prompts(model, prompts, **SAMPLING)
    quick = ["--steps", "2", "--batch-size", "2", "--micro-batch-size", "2"] if args.quick else []
    paths = ["--model", f"{args.out}/categories/model", "--dpo.pairs", f'["{pairs}"]']
    config = load_config(DPOTrainConfig, CONFIG, [*paths, *quick, *args.overrides])
    decoder = train_dpo(config, load_model(config.model), args.out / "preferred")
    assert decoder is not None, "one process"
    components = ModelComponents(decoder, start.tokenizers)
    save_model(args.out / "preferred" / "model", components)
    tuned = Model(components)
    after = answer_prompts(tuned, prompts, **SAMPLING)
    others = [answer.has_image for answer in answer_prompts(tuned, words[: 3 * num_held_out])]

    def preferred(answer: PromptAnswer) -> bool:
        return is_correct(answer) and len(answer.text) <= median_lengths[answer.document.attributes["kind"]]

    hits = [[preferred(answer) for answer in some] for some in (before, after)]
    correct = [[is_correct(answer) for answer in some] for some in (before, after)]
    results = [
        proportion("preferred, before", hits[0]),
        proportion("preferred, after", hits[1]),
        paired_difference(*hits),
        proportion("correct, before", correct[0]),
        proportion("correct, after", correct[1]),
        proportion("finished, before", [answer.is_finished for answer in before]),
        proportion("finished, after", [answer.is_finished for answer in after]),
        proportion("text requests without image, after", [not has_image for has_image in others]),
    ]
    count = len(pairs.read_text(encoding="utf-8").splitlines())
    (args.out / "preference.json").write_text(json.dumps({"pairs": count, "figures": results}, indent=1))
    print(f"{count} pairs", *map(table_row, results), sep="\n")


if __name__ == "__main__":
    main()
