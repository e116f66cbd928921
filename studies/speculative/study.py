"""Speculative decoding of image tokens: steps per image on a trained model.

    python studies/speculative/study.py out/demo/model
    python studies/speculative/study.py out/demo/model --quick
    python studies/speculative/study.py still-life out/grid-16/run/model --prompts still-lifes --chart chart.svg

An image is generated for every prompt and seed, with each number of speculative tokens and without
them, under several sampling parameters. The table has steps per image (forward calls that gave
codes), the reduction of steps, which is the number of codes accepted per step, seconds per image,
and how many images equal, code for code, those without speculative tokens: all of them, unless the
rounding of floats has decided a sample.
"""

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
from calumma.charts import Chart, Curve
from calumma.files import write_text
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling, Request

PROMPTS = {
    "demo": (
        "draw a large red circle on a blue ground",
        "draw a small green cross on a yellow ground",
        "draw a large strawberry on a blue ground",
        "draw a small white star on a black ground",
        "draw a cat",
        "draw a house",
    ),
    "still-lifes": (
        "Draw a small red circle on a blue background.",
        "Draw a small green cross on a yellow background.",
        "Draw a white square to the left of a blue triangle on a green background.",
        "Draw a yellow ring above a red diamond on a white background.",
        "Draw two blue crosses side by side on a yellow background.",
        "Draw four white circles in the corners on a red background.",
    ),
}
"""Prompts by the corpus of the model; those of still lifes are simple enough for `grid.py`."""

NUM_SPECULATIVE_TOKENS = (0, 4, 8, 16, 32)
OWN = "the model's own"
SAMPLING = {
    "the release's": ImageSampling(),
    "no guidance": ImageSampling(guidance_scale=1.0, image_guidance_scale=1.0),
    "temperature 1, top-p 1": ImageSampling(temperature=1.0, top_p=1.0),
    "greedy": ImageSampling(temperature=0.0),
}


def generate(model: Model, request: Request) -> tuple[list[int], int, float]:
    """Generate an image; returns its tokens, the steps that gave them, and the seconds."""
    started = time.perf_counter()
    state = model.engine.submit(request)
    codes: list[int] = []
    steps = 0
    while not state.is_finished:
        new = [id_ for _, id_ in model.engine.step() if id_ in model.vocabulary.codes]
        codes += new
        steps += bool(new)
    return codes, steps, time.perf_counter() - started


def measure(model: Model, requests: Sequence[Request], num_tokens: int) -> dict[str, Any]:
    """Run all requests with one number of speculative tokens; returns images and means."""
    results = []
    for request in requests:
        image = replace(request.image, num_speculative_tokens=num_tokens)
        results.append(generate(model, replace(request, image=image)))
    return {
        "images": [codes for codes, _, _ in results],
        "steps": sum(steps for _, steps, _ in results) / len(results),
        "seconds": sum(seconds for _, _, seconds in results) / len(results),
    }


def table_rows(model: Model, prompts: Sequence[str], seeds: int, sampling: str) -> list[dict[str, Any]]:
    """Measure each number of speculative tokens with one set of sampling parameters."""
    options = {"modality": "image", "max_images": 1, "image": SAMPLING.get(sampling, model.default_image_sampling)}
    max_new_tokens = model.image.config.codes_per_image + 2
    requests = [
        model.request([prompt], max_new_tokens=max_new_tokens, seed=seed, **options)
        for prompt in prompts
        for seed in range(seeds)
    ]
    found = []
    plain = measure(model, requests, 0)
    for num_tokens in NUM_SPECULATIVE_TOKENS:
        result = measure(model, requests, num_tokens) if num_tokens else plain
        pairs = zip(result["images"], plain["images"], strict=True)
        found.append(
            {
                "grid": f"{model.image.config.codes_per_side} x {model.image.config.codes_per_side}",
                "sampling": sampling,
                "num_speculative_tokens": num_tokens,
                "steps": round(result["steps"], 2),
                "reduction": round(plain["steps"] / result["steps"], 3),
                "seconds": round(result["seconds"], 4),
                "equal": sum(one == other for one, other in pairs),
                "images": len(requests),
            }
        )
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """Format the table of the results page."""
    lines = [
        "| grid | sampling | draft tokens | steps per image | reduction | seconds per image | equal |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['grid']} | {row['sampling']} | {row['num_speculative_tokens'] or 'none'} | {row['steps']:.1f} | "
        f"{row['reduction']:.2f} | {row['seconds']:.3f} | {row['equal']} of {row['images']} |"
        for row in found
    ]
    return "\n".join(lines)


def chart(found: Sequence[dict[str, Any]]) -> str:
    """Draw the codes accepted per step by the number of draft tokens, as an SVG."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in found:
        name = f"{row['grid']}, {row['sampling']}"
        lines.setdefault(name, []).append((row["num_speculative_tokens"], row["reduction"]))
    curves = {name: Curve.from_points(points) for name, points in lines.items()}
    return Chart("codes accepted per step, by draft tokens", curves).to_svg_file()


def main() -> None:
    """Measure, print the table, and optionally write the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folders")
    parser.add_argument("--prompts", choices=[*PROMPTS], default="demo", help="corpus of the models")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="images per prompt")
    parser.add_argument("--sampling", nargs="+", choices=[*SAMPLING, OWN], default=[*SAMPLING])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the reductions as an SVG")
    parser.add_argument("--quick", action="store_true", help="one prompt, one seed, one set of parameters")
    arguments = parser.parse_args()
    prompts = PROMPTS[arguments.prompts]
    seeds, names = arguments.seeds, arguments.sampling
    if arguments.quick:
        prompts, seeds, names = prompts[:1], 1, names[:1]
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for folder in arguments.models:
        model = calumma.load(folder, device="cpu")
        for name in names:
            found += table_rows(model, prompts, seeds, name)
            print(f"{folder}, {name}: done", file=sys.stderr, flush=True)
    if arguments.chart:
        write_text(arguments.chart, chart(found))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
