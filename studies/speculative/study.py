"""How many steps a picture takes when codes are guessed ahead, on a trained model.

    python studies/speculative/study.py out/demo/model
    python studies/speculative/study.py out/demo/model --quick

Every prompt is drawn with every seed, with each window of guesses and without one, under several
rules of sampling. Told are steps a picture (calls of the decoder that gave codes), how many times
fewer they are than without guesses, seconds a picture, and how many of the pictures are, code for
code, those that come without guesses: all of them, or the rounding of floats has decided a draw.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import calumma
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, Request

PROMPTS = (
    "draw a large red circle on a blue ground",
    "draw a small green cross on a yellow ground",
    "draw a large strawberry on a blue ground",
    "draw a small white star on a black ground",
    "draw a cat",
    "draw a house",
)
WINDOWS = (0, 4, 8, 16, 32)
RULES = {
    "the release's": ImageSampling(),
    "no guidance": ImageSampling(guidance_scale=1.0, image_guidance_scale=1.0),
    "temperature 1, top-p 1": ImageSampling(temperature=1.0, top_p=1.0),
    "greedy": ImageSampling(temperature=0.0),
}


def drawn(model: Model, request: Request) -> tuple[list[int], int, float]:
    """The codes' ids of one picture, the steps that gave them, and the seconds they took."""
    started = time.perf_counter()
    work = model.engine.submit(request)
    codes: list[int] = []
    steps = 0
    while not work.is_finished:
        new = [id_ for _, id_ in model.engine.step() if id_ in model.vocabulary.codes]
        codes += new
        steps += bool(new)
    return codes, steps, time.perf_counter() - started


def measured(model: Model, requests: Sequence[Request], window: int) -> dict[str, Any]:
    """The pictures of all requests with one window, and the means of their figures."""
    made = []
    for request in requests:
        image = replace(request.image, num_speculative_tokens=window)
        made.append(drawn(model, replace(request, image=image)))
    return {
        "pictures": [codes for codes, _, _ in made],
        "steps": sum(steps for _, steps, _ in made) / len(made),
        "seconds": sum(seconds for _, _, seconds in made) / len(made),
    }


def rows(model: Model, prompts: Sequence[str], seeds: int, rule: str) -> list[dict[str, Any]]:
    """A row of the table for each window, under one rule of sampling."""
    asked = {"modality": "image", "max_images": 1, "image": RULES[rule]}
    room = model.image.config.codes_per_image + 2
    requests = [
        model.request([prompt], max_new_tokens=room, seed=seed, **asked)
        for prompt in prompts
        for seed in range(seeds)
    ]
    found = []
    alone = measured(model, requests, 0)
    for window in WINDOWS:
        told = alone if window == 0 else measured(model, requests, window)
        pairs = zip(told["pictures"], alone["pictures"], strict=True)
        found.append(
            {
                "rule": rule,
                "window": window,
                "steps": round(told["steps"], 2),
                "fewer": round(alone["steps"] / told["steps"], 3),
                "seconds": round(told["seconds"], 4),
                "same": sum(one == other for one, other in pairs),
                "pictures": len(requests),
            }
        )
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """The results page's table."""
    lines = [
        "| rules | window | steps a picture | times fewer | seconds a picture | the same |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['rule']} | {row['window'] or 'none'} | {row['steps']:.1f} | {row['fewer']:.2f} | "
        f"{row['seconds']:.3f} | {row['same']} of {row['pictures']} |"
        for row in found
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and keep the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model folder")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="pictures of a prompt")
    parser.add_argument("--rules", nargs="+", choices=[*RULES], default=[*RULES])
    parser.add_argument("--out", type=Path, metavar="FILE", help="keeps the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="one prompt, one seed, one rule")
    arguments = parser.parse_args()
    prompts = arguments.prompt or PROMPTS
    seeds, rules = arguments.seeds, arguments.rules
    if arguments.quick:
        prompts, seeds, rules = prompts[:1], 1, rules[:1]
    torch.set_num_threads(1)
    model = calumma.load(arguments.model)
    found: list[dict[str, Any]] = []
    for rule in rules:
        found += rows(model, prompts, seeds, rule)
        print(f"{rule}: done", file=sys.stderr, flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
