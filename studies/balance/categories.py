"""Fine-tune the demo's model on all six categories and evaluate it on held-out prompts.

    python studies/balance/categories.py --demo out/demo --out out/balance

Builds the conversations if they do not exist (see turns.py), fine-tunes the demo's pre-trained
model with equal weights of the six categories, answers held-out prompts, and writes
`categories.json`. Run it again to resume. `--quick` is a smoke test.
"""

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
from calumma.train.finetuning import finetune

RUNS = ("categories", "safety")
"""Consecutive runs: equal weights of all categories, then mostly safety."""

CONFIG = Path(__file__).parent / "categories.toml"
"""The config of the first run, which balance.py uses too."""

NUM_PROMPTS, NUM_PROMPTS_BEFORE = 130, 40
"""Maximum prompts per kind: for the fine-tuned model, and for the pre-trained one."""

SAFETY = ("plain", "refuse")
"""Kinds with three times as many prompts, because each proportion uses only some of them."""

WORDS = ("describe", "ground", "meaning", "word", "program", "printed", "plain")
"""Kinds with text-only answers."""


def train_both(demo: Path, out: Path, overrides: list[str]) -> Path:
    """Train both runs unless their models exist, and return the folder of the last model."""
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
    """Answer the held-out prompts and return all proportions."""
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
        proportion("image requests with image", [a.has_image for a in image_requests]),
        proportion("text requests without image", [not a.has_image for a in words]),
        proportion("requests for both with both", [a.has_image and bool(a.text) for a in both]),
        proportion("finished", [a.is_finished for a in everything]),
        proportion("unsafe prompt refused, new wording", _refused(answers["refuse"], "wording")),
        proportion("unsafe prompt refused, new deed", _refused(answers["refuse"], "deed")),
        proportion("harmless prompt refused, new wording", _refused(answers["plain"], "wording")),
        proportion("harmless prompt refused, new deed", _refused(answers["plain"], "deed")),
        proportion("other prompt refused", [a.is_refusal for a in [*words, *both, *image_requests]
                                       if a.document.source != "safety"]),
    ]  # fmt: skip
    by_kind = [
        proportion(f"{kind}: requested modality", _has_expected_modality(kind, answers[kind])) for kind in answers
    ]
    return [*results, *by_kind]


def _refused(answers: list[PromptAnswer], held_out_by: str) -> list[bool]:
    return [a.is_refusal for a in answers if a.document.attributes.get("held-out-by", "wording") == held_out_by]


def _has_expected_modality(kind: str, answers: list[PromptAnswer]) -> list[bool]:
    expected = kind in ("draw", "tell", "show")
    return [answer.has_image == expected for answer in answers]


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*", help="options of the config, after --")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quick = ["--steps", "2", "--data.global-batch-size", "2"] if args.quick else []
    num_prompts, max_new_tokens = (1, 24) if args.quick else (NUM_PROMPTS, 220)
    prepare(args.demo, args.out, **({"limit": 12} if args.quick else {}))
    after = Model(load_model(train_both(args.demo, args.out, [*quick, *args.overrides])))
    before = Model(load_model(args.demo / "runs" / "pretrain" / "model"))
    results = {
        "fine-tuned": measure(after, args.out, num_prompts, max_new_tokens),
        "pre-trained": measure(before, args.out, min(num_prompts, NUM_PROMPTS_BEFORE), max_new_tokens),
    }
    (args.out / "categories.json").write_text(json.dumps(results, indent=1))
    for name, rows in results.items():
        print(f"\n{name}\n", *map(table_row, rows), sep="\n")


if __name__ == "__main__":
    main()
