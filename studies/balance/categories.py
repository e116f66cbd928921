"""All six categories at the size of the demo: one fine-tuning, and held-out prompts.

    python studies/balance/categories.py --demo out/demo --out out/balance

Makes the conversations where they are not there (see turns.py), fine-tunes the demo's pre-trained
model on equal shares of the six categories, asks held-out prompts, and writes `categories.json`.
Stopped, it goes on. `--quick` is a smoke test.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from prompting import PromptAnswer, answer_prompts, held_out_documents, proportion, table_row
from turns import prepare

from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.generate.model import Model
from calumma.toml_config import load_config
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.finetune import finetune

RUNS = ("categories", "safety")
"""One behind the other: equal shares of all categories, then mostly safety."""

CONFIG = Path(__file__).parent / "categories.toml"
"""The first of the two, whose settings balance.py takes."""

NUM_PROMPTS, MOST_BEFORE = 130, 40
"""Prompts of a kind, at most: for the fine-tuned model, and for the one it started from."""

SAFETY = ("plain", "refuse")
"""Kinds of which three times as many are asked: each of their shares counts only some."""

WORDS = ("describe", "ground", "meaning", "word", "program", "printed", "plain")
"""Kinds whose answers are words alone."""


def train_both(demo: Path, out: Path, overrides: list[str]) -> Path:
    """The folder of the model behind both runs, each trained where it is not there."""
    start = demo / "runs" / "pretrain" / "model"
    for name in RUNS:
        folder = out / name / "model"
        if not (folder / "config.json").is_file():
            paths = ["--model", f"{start}", "--tokenizers", f"{demo}/tokenizers",
                      "--shards", f"{out}/shards"]  # fmt: skip
            path = Path(__file__).parent / f"{name}.toml"
            config = load_config(FinetuneConfig, path, [*paths, *overrides])
            parts = load_model(config.model)
            decoder = finetune(config, parts.decoder, parts.tokenizers.text.vocabulary, out / name)
            assert decoder is not None, "one process"
            save_model(folder, ModelComponents(decoder, parts.tokenizers))
        start = folder
    return start


def measure(model: Model, out: Path, num_prompts: int, max_new_tokens: int) -> list[dict[str, Any]]:
    """Everything that is counted, in answers of so many ids at most."""
    answers = {
        kind: answer_prompts(
            model,
            held_out_documents(out, kind, num_prompts * 3 if kind in SAFETY else num_prompts),
            max_new_tokens=max_new_tokens,
        )
        for kind in (*WORDS, "draw", "tell", "show", "refuse")
    }
    words = [answer for kind in WORDS for answer in answers[kind]]
    both = [*answers["tell"], *answers["show"]]
    image_requests = answers["draw"]
    everything = [*words, *both, *image_requests, *answers["refuse"]]
    results = [
        proportion("asked for a picture, draws one", [a.has_image for a in image_requests]),
        proportion("asked for words, draws none", [not a.has_image for a in words]),
        proportion("asked for words and pictures, gives both", [a.has_image and bool(a.text) for a in both]),
        proportion("ends by itself", [a.is_finished for a in everything]),
        proportion("unsafe prompt refused, new wording", _refused(answers["refuse"], "wording")),
        proportion("unsafe prompt refused, new deed", _refused(answers["refuse"], "deed")),
        proportion("harmless look-alike refused, new wording", _refused(answers["plain"], "wording")),
        proportion("harmless look-alike refused, new deed", _refused(answers["plain"], "deed")),
        proportion("other prompt refused", [a.is_refusal for a in [*words, *both, *image_requests]
                                       if a.document.source != "safety"]),
    ]  # fmt: skip
    by_kind = [
        proportion(f"{kind}: modality as asked", _as_asked(kind, answers[kind])) for kind in answers
    ]
    return [*results, *by_kind]


def _refused(answers: list[PromptAnswer], why: str) -> list[bool]:
    return [
        a.is_refusal for a in answers if a.document.attributes.get("held-out-by", "wording") == why
    ]


def _as_asked(kind: str, answers: list[PromptAnswer]) -> list[bool]:
    expected = kind in ("draw", "tell", "show")
    return [answer.has_image == expected for answer in answers]


def main() -> None:
    """Train what is missing, ask, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("changes", nargs="*", help="of the config, behind --")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quick = ["--steps", "2", "--data.global-batch-size", "2"] if args.quick else []
    most, longest = (1, 24) if args.quick else (NUM_PROMPTS, 220)
    prepare(args.demo, args.out, **({"limit": 12} if args.quick else {}))
    after = Model(load_model(train_both(args.demo, args.out, [*quick, *args.changes])))
    before = Model(load_model(args.demo / "runs" / "pretrain" / "model"))
    results = {
        "fine-tuned": measure(after, args.out, most, longest),
        "pre-trained": measure(before, args.out, min(most, MOST_BEFORE), longest),
    }
    (args.out / "categories.json").write_text(json.dumps(results, indent=1))
    for name, found in results.items():
        print(f"\n{name}\n", *map(table_row, found), sep="\n")


if __name__ == "__main__":
    main()
