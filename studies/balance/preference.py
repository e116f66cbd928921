"""Preference tuning on real comparisons: pictures whose ground has the colour that was asked for.

    python studies/balance/preference.py --demo out/demo --out out/balance

Goes on from six.py's model. It answers training prompts for pictures four times each; of answers to
one prompt, a picture with the ground that was asked for is preferred to one without (a rule that
looks at pixels, no person). DPO learns from these pairs, and held-out prompts are answered before
and after. `preference.json` has the figures. `--quick` is a smoke test.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from asking import Answer, ask, held_out, line, share

from calumma.checkpoints.model_folder import ModelParts, load_model, save_model
from calumma.documents.document import Document, Image, Part, Text
from calumma.documents.preferences import Preference, write_preferences
from calumma.documents.readers import read_documents
from calumma.evaluate.colour import ground_word
from calumma.generate.config import ImageSampling, TextSampling
from calumma.generate.model import Model
from calumma.settings import load_config
from calumma.train.config_preference import PreferenceConfig
from calumma.train.preference import prefer

CONFIG = Path(__file__).parent / "preference.toml"
PROMPTS, ANSWERS, MOST = 150, 4, 150
KINDS = ("draw", "tell")
"""Prompts that are answered with one picture, alone or behind words."""

AS_IT_IS = {
    "text": TextSampling(temperature=1.0, top_p=1.0, repetition_penalty=1.0),
    "image": ImageSampling(temperature=1.0, top_p=1.0, text_guidance=1.0, image_guidance=1.0),
    "max_new_tokens": 160,
}
"""Drawn from the model's own distribution, which is what DPO changes."""


def asked_ground(document: Document) -> str:
    """The colour of ground that a prompt asks for."""
    asked = " ".join(part.text for part in document.messages[0].parts if isinstance(part, Text))
    found = re.search(r"on an? (\w+) ground", asked)
    assert found is not None, asked
    return found[1]


def is_preferred(answer: Answer) -> bool:
    """Whether the answer's one picture has the ground that was asked for, and it ended."""
    pictures = [part for part in answer.sample.parts if isinstance(part, PIL.Image.Image)]
    right = len(pictures) == 1 and ground_word(pictures[0]) == asked_ground(answer.asked)
    return answer.ended and right


def compared(model: Model, prompts: Sequence[Document]) -> list[Preference]:
    """A pair for each prompt that was answered both ways."""
    repeated = [prompt for prompt in prompts for _ in range(ANSWERS)]
    answers = ask(model, repeated, **AS_IT_IS)
    pairs = []
    for number, prompt in enumerate(prompts):
        mine = answers[number * ANSWERS : (number + 1) * ANSWERS]
        good = [answer for answer in mine if is_preferred(answer)]
        bad = [answer for answer in mine if not is_preferred(answer)]
        if good and bad:
            pairs.append(
                Preference(
                    id=prompt.id,
                    prompt=prompt.messages[0].parts,
                    chosen=_parts(good[0]),
                    rejected=_parts(bad[0]),
                    source="rule: ground as asked",
                )
            )
    return pairs


def _parts(answer: Answer) -> tuple[Part, ...]:
    made: list[Part] = []
    for part in answer.sample.parts:
        if isinstance(part, str):
            made.append(Text(part))
            continue
        file = io.BytesIO()
        part.save(file, "PNG")
        made.append(Image(data=file.getvalue()))
    return tuple(made) or (Text(""),)


def pairs_of(model: Model, out: Path, count: int) -> Path:
    """The file of pairs, made where it is not there."""
    path = out / "pairs.jsonl"
    if not path.is_file():
        train = [
            d for d in read_documents([out / "train.parquet"]) if d.attributes["kind"] in KINDS
        ]
        write_preferences(path, compared(model, train[:: max(1, len(train) // count)][:count]))
    return path


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
    start = load_model(args.out / "six" / "model")
    model = Model(start)
    pairs = pairs_of(model, args.out, 8 if args.quick else PROMPTS)
    most = 1 if args.quick else MOST
    prompts = [d for kind in KINDS for d in held_out(args.out, kind, most)]
    words = [d for kind in ("describe", "meaning", "plain") for d in held_out(args.out, kind, 30)]
    before = ask(model, prompts, **AS_IT_IS)
    quick = ["--steps", "2", "--pairs-per-step", "2"] if args.quick else []
    places = ["--model", f"{args.out}/six/model", "--preference.pairs", f'["{pairs}"]']
    config = load_config(PreferenceConfig, CONFIG, [*places, *quick, *args.changes])
    decoder = prefer(config, load_model(config.model), args.out / "preferred")
    assert decoder is not None, "one process"
    made = ModelParts(decoder, start.text, start.image)
    save_model(args.out / "preferred" / "model", made)
    tuned = Model(made)
    after = ask(tuned, prompts, **AS_IT_IS)
    others = [answer.drew for answer in ask(tuned, words[: 3 * most])]
    hits = [[is_preferred(answer) for answer in some] for some in (before, after)]
    results = [
        share("preferred, before", hits[0]),
        share("preferred, after", hits[1]),
        difference(*hits),
        share("ends by itself, before", [answer.ended for answer in before]),
        share("ends by itself, after", [answer.ended for answer in after]),
        share("asked for words, draws none, after", [not drew for drew in others]),
    ]
    count = len(pairs.read_text(encoding="utf-8").splitlines())
    (args.out / "preference.json").write_text(
        json.dumps({"pairs": count, "figures": results}, indent=1)
    )
    print(f"{count} pairs", *map(line, results), sep="\n")


if __name__ == "__main__":
    main()
