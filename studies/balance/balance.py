"""Measure the effect of an unbalanced mixture: the fraction of answers with an image, 0 to 1.

    python studies/balance/balance.py --demo out/demo --out out/balance

Fine-tunes the demo's pre-trained model once for each fraction and seed, on image generation against
visual chat and dictionary questions (text answers), and answers held-out prompts of both kinds.
Finished runs are skipped; results are in `balance.json` and `balance.svg`. `--quick` is a smoke
test.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from categories import CONFIG
from prompting import PromptAnswer, answer_prompts, held_out_documents, proportion
from turns import prepare

from calumma.checkpoints.model_folder import ModelComponents, load_model
from calumma.generate.model import Model
from calumma.model.decoder import Decoder
from calumma.toml_config import build_config, read_toml
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.finetuning import finetune, modality_balance

IMAGE_FRACTIONS = (0.0, 1.0, 0.5, 0.05, 0.95, 0.01, 0.99)
"""Fractions of training conversations with an image as answer, extremes and middle first."""

SEEDS = (0, 1)
STEPS = 50
NUM_PROMPTS = 40
"""Held-out prompts per kind."""


def build_run_config(image_fraction: float, seed: int, demo: Path, out: Path, steps: int) -> FinetuneConfig:
    """Return the config of a mixture: `categories.toml` with other sources."""
    tree = read_toml(CONFIG)
    del tree["categories"]
    weights = {
        "image_generation": image_fraction,
        "text": (1 - image_fraction) / 2,
        "visual_chat": (1 - image_fraction) / 2,
    }
    tree |= {
        "model": f"{demo}/runs/pretrain/model",
        "tokenizers": f"{demo}/tokenizers",
        "shards": f"{out}/shards",
        "weights": {name: weight for name, weight in weights.items() if weight > 0},
        "steps": steps,
        "seed": seed,
        "checkpoint": {"interval": 25},
        "data": tree["data"] | {"seed": seed},
        "schedule": tree["schedule"] | {"warmup_steps": 5},
    }
    return build_config(FinetuneConfig, tree, "balance.py")


def image_rates(decoder: Decoder, start: ModelComponents, out: Path, num_prompts: int) -> dict[str, Any]:
    """Measure how often an image is generated for image requests and for text requests."""
    model = Model(ModelComponents(decoder, start.tokenizers))
    image_answers = answer_prompts(model, held_out_documents(out, "draw", num_prompts), max_new_tokens=80)
    text_answers = [
        answer
        for kind in ("describe", "ground", "meaning", "word")
        for answer in answer_prompts(model, held_out_documents(out, kind, -(-num_prompts // 4)), max_new_tokens=80)
    ]
    return {"image requests": _image_rate(image_answers), "text requests": _image_rate(text_answers)}


def _image_rate(answers: list[PromptAnswer]) -> dict[str, Any]:
    return proportion("with image", [answer.has_image for answer in answers])


def run_mixture(image_fraction: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one mixture unless its result exists."""
    folder = args.out / f"images-{image_fraction}-seed-{seed}"
    done = folder / "figures.json"
    if done.is_file():
        result: dict[str, Any] = json.loads(done.read_text())
        return result
    config = build_run_config(image_fraction, seed, args.demo, args.out, 2 if args.quick else STEPS)
    start = load_model(config.model)
    decoder = finetune(config, start.decoder, start.tokenizers.text.vocabulary, folder)
    assert decoder is not None, "one process"
    result = {"image_fraction": image_fraction, "seed": seed, "warning": modality_balance(config).warning}
    result |= image_rates(decoder, start, args.out, 1 if args.quick else NUM_PROMPTS)
    done.write_text(json.dumps(result))
    return result


WIDTH, HEIGHT, EDGE = 560, 260, 44
COLORS = {"image requests": "#b2451c", "text requests": "#1c5fb2"}


def svg_chart(results: list[dict[str, Any]]) -> str:
    """Return the results as SVG: a dot per run, and lines through the means over seeds."""
    fractions = sorted({result["image_fraction"] for result in results})
    step = (WIDTH - 2 * EDGE) / max(1, len(fractions) - 1)
    across = {fraction: EDGE + step * n for n, fraction in enumerate(fractions)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *(_mark(across[fraction], HEIGHT - 24, f"{fraction:.0%}") for fraction in fractions),
        *(_mark(18, _down(level) + 4, f"{level:.0%}") for level in (0.0, 0.5, 1.0)),
        _mark(WIDTH / 2, HEIGHT - 6, "answers with an image in the training mixture"),
    ]
    for number, (kind, color) in enumerate(COLORS.items()):
        dots = [(across[r["image_fraction"]], _down(r[kind]["value"])) for r in results]
        means = [
            _mean([r[kind]["value"] for r in results if r["image_fraction"] == fraction]) for fraction in fractions
        ]
        path = " ".join(f"{across[d]:.1f},{_down(m):.1f}" for d, m in zip(fractions, means, strict=True))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in dots]
        parts.append(_mark(150 + 220 * number, 14, f"{kind}: image generated", color))
    return "\n".join([*parts, "</svg>\n"])


def _down(level: float) -> float:
    return HEIGHT - EDGE - level * (HEIGHT - EDGE - 28)


def _mark(x: float, y: float, text: str, color: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="{color}">{text}</text>'


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def markdown_table(results: list[dict[str, Any]]) -> str:
    """Format the results as a Markdown table, one row per run."""
    heads = ("images in training", "seed", "image requests", "text requests", "warning")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in results:
        cells = [f"{result['image_fraction']:.0%}", str(result["seed"])]
        for kind in ("image requests", "text requests"):
            low, high = result[kind]["interval"]
            cells.append(f"{result[kind]['value']:.0%} ({low:.0%} to {high:.0%})")
        rows.append(f"| {' | '.join([*cells, 'yes' if result['warning'] else 'no'])} |")
    return "\n".join(rows)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare(args.demo, args.out, **({"limit": 12} if args.quick else {}))
    cases = [(fraction, seed) for seed in SEEDS for fraction in IMAGE_FRACTIONS]
    results: list[dict[str, Any]] = []
    for case in cases[:1] if args.quick else cases:
        newest = run_mixture(*case, args)
        results = sorted([*results, newest], key=lambda r: (r["seed"], r["image_fraction"]))
        (args.out / "balance.json").write_text(json.dumps(results, indent=1))
        (args.out / "balance.svg").write_text(svg_chart(results))
        print(markdown_table([newest]), flush=True)
    print(markdown_table(results))


if __name__ == "__main__":
    main()
