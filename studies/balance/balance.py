"""What an unbalanced mixture does: the share of answers with a picture, from none to all.

    python studies/balance/balance.py --demo out/demo --out out/balance

Fine-tunes the demo's pre-trained model once for each share and seed, on drawing (answers that are a
picture) against visual chat and dictionary questions (answers in words), and asks held-out prompts
of both sides for what they ask for. Runs that are done are not done again; `balance.json` has the
figures, `balance.svg` draws them. `--quick` is a smoke test.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from asking import Answer, ask, held_out, share
from categories import CONFIG
from turns import prepare

from calumma.checkpoints.model_folder import ModelComponents, load_model
from calumma.generate.model import Model
from calumma.model.decoder import Decoder
from calumma.toml_config import build_config, read_toml
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.finetune import balance, finetune

SHARES = (0.0, 1.0, 0.5, 0.05, 0.95, 0.01, 0.99)
"""Of training conversations whose answer is a picture; the ends and the middle first."""

SEEDS = (0, 1)
STEPS = 50
MOST = 40
"""Held-out prompts of a kind."""


def config_of(drawn: float, seed: int, demo: Path, out: Path, steps: int) -> FinetuneConfig:
    """The config of a mixture: that of all six categories, with other sources."""
    tree = read_toml(CONFIG)
    del tree["categories"]
    weights = {"image_generation": drawn, "text": (1 - drawn) / 2, "visual_chat": (1 - drawn) / 2}
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


def figures(decoder: Decoder, start: ModelComponents, out: Path, most: int) -> dict[str, Any]:
    """How often a picture is drawn where one is asked for, and where words are."""
    model = Model(ModelComponents(decoder, start.tokenizers))
    expected = ask(model, held_out(out, "draw", most), max_new_tokens=80)
    words = [
        answer
        for kind in ("describe", "ground", "meaning", "word")
        for answer in ask(model, held_out(out, kind, -(-most // 4)), max_new_tokens=80)
    ]
    return {"asked for a picture": _drew(expected), "asked for words": _drew(words)}


def _drew(answers: list[Answer]) -> dict[str, Any]:
    return share("draws", [answer.drew for answer in answers])


def run(drawn: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One mixture, trained and asked, unless that is done."""
    folder = args.out / f"drawn-{drawn}-seed-{seed}"
    done = folder / "figures.json"
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    config = config_of(drawn, seed, args.demo, args.out, 2 if args.quick else STEPS)
    start = load_model(config.model)
    decoder = finetune(config, start.decoder, start.tokenizers.text.vocabulary, folder)
    assert decoder is not None, "one process"
    found = {"drawn": drawn, "seed": seed, "warning": balance(config).warning}
    found |= figures(decoder, start, args.out, 1 if args.quick else MOST)
    done.write_text(json.dumps(found))
    return found


WIDTH, HEIGHT, EDGE = 560, 260, 44
COLOURS = {"asked for a picture": "#b2451c", "asked for words": "#1c5fb2"}


def chart(results: list[dict[str, Any]]) -> str:
    """The figure, as SVG: a dot a run, and lines through the means over seeds."""
    shares = sorted({result["drawn"] for result in results})
    step = (WIDTH - 2 * EDGE) / max(1, len(shares) - 1)
    across = {drawn: EDGE + step * place for place, drawn in enumerate(shares)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *(_mark(across[drawn], HEIGHT - 24, f"{drawn:.0%}") for drawn in shares),
        *(_mark(18, _down(level) + 4, f"{level:.0%}") for level in (0.0, 0.5, 1.0)),
        _mark(WIDTH / 2, HEIGHT - 6, "answers with a picture in the training mixture"),
    ]
    for place, (asked, colour) in enumerate(COLOURS.items()):
        dots = [(across[r["drawn"]], _down(r[asked]["value"])) for r in results]
        means = [
            _mean([r[asked]["value"] for r in results if r["drawn"] == drawn]) for drawn in shares
        ]
        path = " ".join(
            f"{across[d]:.1f},{_down(m):.1f}" for d, m in zip(shares, means, strict=True)
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in dots]
        parts.append(_mark(150 + 220 * place, 14, f"{asked}, draws", colour))
    return "\n".join([*parts, "</svg>\n"])


def _down(level: float) -> float:
    return HEIGHT - EDGE - level * (HEIGHT - EDGE - 28)


def _mark(x: float, y: float, text: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="{colour}">{text}</text>'


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(results: list[dict[str, Any]]) -> str:
    """The figures of all runs, a row each."""
    heads = ("pictures in training", "seed", "asked for a picture, draws", "for words", "warned")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in results:
        cells = [f"{result['drawn']:.0%}", str(result["seed"])]
        for asked in ("asked for a picture", "asked for words"):
            low, high = result[asked]["interval"]
            cells.append(f"{result[asked]['value']:.0%} ({low:.0%} to {high:.0%})")
        rows.append(f"| {' | '.join([*cells, 'yes' if result['warning'] else 'no'])} |")
    return "\n".join(rows)


def main() -> None:
    """Train what is missing, ask, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare(args.demo, args.out, **({"limit": 12} if args.quick else {}))
    cases = [(drawn, seed) for seed in SEEDS for drawn in SHARES]
    results: list[dict[str, Any]] = []
    for case in cases[:1] if args.quick else cases:
        newest = run(*case, args)
        results = sorted([*results, newest], key=lambda r: (r["seed"], r["drawn"]))
        (args.out / "balance.json").write_text(json.dumps(results, indent=1))
        (args.out / "balance.svg").write_text(chart(results))
        print(table([newest]), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
