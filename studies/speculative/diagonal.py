"""Images diagonal by diagonal: steps, seconds and the judge's score compared with one code per step.

    python studies/speculative/diagonal.py out/downward/run/model --count 100

The model has a downward head (`runs/still-life-downward.toml`). The ways alternate, caption by
caption, in one process.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import calumma
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_prompts import DRAWING_SKILLS, DrawingPrompt, sample_drawing_prompts
from calumma.generate.model import Model
from calumma.generate.params import Request

WAYS: Mapping[str, Mapping[str, Any]] = {
    "one code per step": {},
    "8 speculative tokens": {"num_speculative_tokens": 8},
    "diagonal": {"image_decoding": "diagonal"},
}


def request(model: Model, prompt: DrawingPrompt, seed: int, way: str) -> Request:
    """Build the request of an image."""
    fields = dict(WAYS[way])
    sampling = model.default_image_sampling
    if "num_speculative_tokens" in fields:
        sampling = replace(sampling, num_speculative_tokens=fields.pop("num_speculative_tokens"))
    length = model.image.config.codes_per_image + 2
    options = {"modality": "image", "max_images": 1, "max_new_tokens": length, "image": sampling, **fields}
    return model.request([f"Draw {prompt.caption}."], seed=seed, **options)


def run(model: Model, requests: list[Request]) -> tuple[list[list[int]], int, float]:
    """Run requests as one batch; returns their codes, the steps and the seconds."""
    started, steps = time.perf_counter(), 0
    states = model.engine.submit_all(requests)
    while not all(state.is_finished for state in states):
        model.engine.step()
        steps += 1
    codes = model.vocabulary.codes
    images = [[id_ - codes.start for id_ in state.output_token_ids if id_ in codes] for state in states]
    return images, steps, time.perf_counter() - started


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="prompts of each skill")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--skill", nargs="+", choices=[*DRAWING_SKILLS], default=[*DRAWING_SKILLS])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = calumma.load(arguments.model, device="cpu")
    passed: dict[str, list[bool]] = {way: [] for way in WAYS}
    steps, seconds = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0.0)
    size = arguments.batch_size
    prompts = [prompt for skill in arguments.skill for prompt in sample_drawing_prompts(skill, arguments.count, 0)]
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    for number, batch in enumerate(batches):
        for way in WAYS:
            requests = [request(model, prompt, number * size + i, way) for i, prompt in enumerate(batch)]
            images, count, took = run(model, requests)
            steps[way] += count
            seconds[way] += took
            passed[way] += [
                prompt.score(read_still_life(model.decode_image(codes)).scene)
                for prompt, codes in zip(batch, images, strict=True)
            ]
    print("| way | steps per batch | seconds per image | judge's score |")
    print("|---|---|---|---|")
    for way in WAYS:
        per_image = seconds[way] / len(prompts)
        print(f"| {way} | {steps[way] / len(batches):.1f} | {per_image:.3f} | {np.mean(passed[way]):.1%} |")


if __name__ == "__main__":
    main()
