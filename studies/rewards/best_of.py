"""Best of n on still lifes: what the choice by a reward adds to the judge's score, and what it costs.

python studies/rewards/best_of.py still-life --best-of 4 --count 100
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

import calumma
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_prompts import DRAWING_SKILLS, DrawingPrompt, sample_drawing_prompts
from calumma.generate.best_of import Reward, score_samples
from calumma.generate.events import Sample
from calumma.generate.model import Model
from calumma.rl.rewards import still_life

REWARDS: dict[str, Reward] = {"logprob": "logprob", "likelihood": "likelihood", "still_life": still_life}


def draw(model: Model, prompts: Sequence[DrawingPrompt], seeds: range) -> list[Sample]:
    """Draw each prompt with each seed, one prompt after the other."""
    length = model.image.config.codes_per_image + 3
    requests = [
        model.request([f"Draw {prompt.caption}."], seed=seed, modality="image", max_images=1, max_new_tokens=length)
        for prompt in prompts
        for seed in seeds
    ]
    return model.generate_requests(requests)


def passes(prompt: DrawingPrompt, sample: Sample) -> bool:
    """Return whether the judge reads what the prompt asks for."""
    (image,) = sample.decoded_parts
    assert not isinstance(image, str)
    return prompt.score(read_still_life(image).scene)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--best-of", type=int, default=4, metavar="N")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="prompts of each skill")
    parser.add_argument("--skill", nargs="+", choices=[*DRAWING_SKILLS], default=[*DRAWING_SKILLS])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, n = calumma.load(arguments.model, device="cpu"), arguments.best_of
    print(f"| skill | one sample | {' | '.join(REWARDS)} | any of {n} passes |")
    print("|---|---|" + "---|" * (len(REWARDS) + 1))
    seconds = dict.fromkeys(("generation", *REWARDS), 0.0)
    for skill in arguments.skill:
        prompts = sample_drawing_prompts(skill, arguments.count, 0)
        started = time.perf_counter()
        samples = draw(model, prompts, range(n))
        seconds["generation"] += time.perf_counter() - started
        groups = [samples[start : start + n] for start in range(0, len(samples), n)]
        passed = np.array([[passes(p, each) for each in group] for p, group in zip(prompts, groups, strict=True)])
        scores = [passed.mean()]
        for name, reward in REWARDS.items():
            started = time.perf_counter()
            text = [f"Draw {prompt.caption}." for prompt in prompts]
            scored = [score_samples(model, t, group, reward) for t, group in zip(text, groups, strict=True)]
            seconds[name] += time.perf_counter() - started
            best = [int(np.argmax([sample.reward for sample in group])) for group in scored]
            scores.append(passed[np.arange(len(best)), best].mean())
        scores.append(passed.any(axis=1).mean())
        print(f"| {skill} | {' | '.join(f'{score:.1%}' for score in scores)} |", flush=True)
    count = arguments.count * len(arguments.skill)
    print(f"\nSeconds per prompt: {', '.join(f'{name} {value / count:.3f}' for name, value in seconds.items())}")


if __name__ == "__main__":
    main()
