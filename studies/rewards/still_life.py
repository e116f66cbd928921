"""Prompts and scores for tuning the shipped model by rewards (GRPO).

    python studies/rewards/still_life.py prompts out/rewards/prompts.parquet
    calumma finetune runs/still-life-grpo.toml --out out/rewards/seed-0 --seed 0
    python studies/rewards/still_life.py score still-life out/rewards/seed-0/model --out out/rewards/scores.json

The scenes that pre-training never shows are few combinations of a thing and a background, or of a
number, a thing and a layout. Every second one, in alphabetical order, is a prompt here; the others
stay held out and measure whether the reward teaches more than its own prompts. A reward needs no
image of a scene, so these prompts cost no training document.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import calumma
from calumma.corpora.still_life import COLORS, THING_SIZES, THINGS, StillLife, sample_still_life
from calumma.corpora.still_life_captions import choose, make_caption
from calumma.corpora.still_life_documents import DRAW_REQUESTS
from calumma.documents.document import Document, Image, Text, Turn
from calumma.documents.writers import write_parquet
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_prompts import DRAWING_SKILLS, sample_drawing_prompts
from calumma.evaluate.still_lifes import draw_captions
from calumma.generate.loglikelihood import token_logprobs
from calumma.generate.model import Model

TRAINING_SHARE = 0.3
"""Fraction of prompts with scenes of pre-training, on which the KL divergence holds the model."""

COUNT_LAYOUTS = (("row", 2), ("column", 2), ("triple", 3), ("corners", 4))
MEASURED = {"one_object": "single", "colors": "single", "counting": "count"}
"""Skills whose scenes are divided, with the kind of scene."""


def combination(scene: StillLife) -> str:
    """Return what decides the split of a scene of one kind of thing."""
    thing = scene.things[0].name
    return f"{len(scene.things)} {thing} {scene.layout}" if scene.is_count else f"{thing} on {scene.background}"


def held_out_scenes(kind: str) -> list[StillLife]:
    """Return all held-out scenes of a kind, "single" or "count"."""
    shown = [(color, thing) for color in COLORS for thing in THINGS if thing.color != color]
    if kind == "single":
        scenes = [StillLife(color, kind, (thing,), size) for color, thing in shown for size in THING_SIZES]
        return [scene for scene in scenes if scene.split == "combinations"]
    counts = [
        StillLife(color, layout, (thing,) * number) for color, thing in shown for layout, number in COUNT_LAYOUTS
    ]
    return [scene for scene in counts if scene.split == "counts"]


def halves(kind: str) -> tuple[list[StillLife], list[StillLife]]:
    """Return the held-out scenes of a kind whose combinations are prompts, and the others."""
    scenes = held_out_scenes(kind)
    of_prompts = set(sorted({combination(scene) for scene in scenes})[::2])
    return (
        [scene for scene in scenes if combination(scene) in of_prompts],
        [scene for scene in scenes if combination(scene) not in of_prompts],
    )


def prompt_documents(count: int, seed: int) -> Iterator[Document]:
    """Yield requests for images, in the wordings of training, with the rendered scene as the reference."""
    singles, counts = halves("single")[0], halves("count")[0]
    for number in range(count):
        random = np.random.default_rng([seed, number, 10])
        if random.random() < TRAINING_SHARE:
            scene = sample_still_life(random)
        else:
            scene = choose(random, singles if random.random() < 0.75 else counts)
        request = choose(random, DRAW_REQUESTS).format(make_caption(scene, random))
        turns = (Turn("user", (Text(request),)), Turn("assistant", (Image(data=scene.to_png(), name="a still life"),)))
        yield Document(id=f"prompt-{number}", messages=turns)


def score_half(model: Model, skill: str, half: int, count: int) -> tuple[list[str], list[bool]]:
    """Draw scenes of one half; returns the combination of each prompt and whether its image passes."""
    definition = DRAWING_SKILLS[skill]
    scenes = [scene for scene in halves(MEASURED[skill])[half] if definition.accepts(scene)]
    chosen = [scenes[number % len(scenes)] for number in range(count)]
    wordings = [np.random.default_rng([half, number, 11]) for number in range(count)]
    captions = [make_caption(scene, random, complete=True) for scene, random in zip(chosen, wordings, strict=True)]
    images = draw_captions(model, captions, EvalConfig())
    passed = [
        image is not None and definition.score(scene, read_still_life(image).scene)
        for scene, image in zip(chosen, images, strict=True)
    ]
    return [combination(scene) for scene in chosen], passed


def score_skill(model: Model, skill: str, count: int) -> list[bool]:
    """Draw the prompts of the `still-lifes` task; returns whether each image passes."""
    prompts = sample_drawing_prompts(skill, count, 0)
    images = draw_captions(model, [prompt.caption for prompt in prompts], EvalConfig())
    return [
        image is not None and prompt.score(read_still_life(image).scene)
        for prompt, image in zip(prompts, images, strict=True)
    ]


def caption_bits(model: Model, count: int) -> float:
    """Return the mean bits per token of captions after the images of training scenes."""
    scenes = [sample_still_life(np.random.default_rng([number, 12])) for number in range(count)]
    sequences, lengths = [], []
    for number, scene in enumerate(scenes):
        prompt = model.encode_chat([{"role": "user", "content": [scene.render(), "What do you see?"]}])
        answer = model.text.encode(make_caption(scene, np.random.default_rng([number, 13]), complete=True))
        sequences.append([*prompt, *answer])
        lengths.append(len(answer))
    found = token_logprobs(model.decoder, sequences)
    return -float(np.mean(np.concatenate([row[-n:] for row, n in zip(found, lengths, strict=True)]))) / np.log(2)


def interval(names: Sequence[str], before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, float]:
    """Return the mean difference and its 95 % interval, by a bootstrap of whole combinations."""
    groups: dict[str, list[float]] = {}
    for name, old, new in zip(names, before, after, strict=True):
        groups.setdefault(name, []).append(float(new) - float(old))
    means = [np.mean(values) for values in groups.values()]
    random = np.random.default_rng(0)
    resampled = [np.mean(random.choice(means, len(means))) for _ in range(10_000)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(np.mean(means)), float(low), float(high)


def measure(folder: str, count: int) -> dict[str, Any]:
    """Return all scores of a model."""
    model = calumma.load(folder, device="cpu")
    found: dict[str, Any] = {"skills": {}, "halves": {}, "caption_bits": caption_bits(model, count)}
    for skill in DRAWING_SKILLS:
        found["skills"][skill] = score_skill(model, skill, count)
        print(f"{folder}: {skill} {np.mean(found['skills'][skill]):.3f}", file=sys.stderr, flush=True)
    for skill in MEASURED:
        for half, name in enumerate(("prompts", "held out")):
            names, passed = score_half(model, skill, half, count)
            found["halves"][f"{skill}, {name}"] = {"combinations": names, "passed": passed}
    return found


def table(models: dict[str, dict[str, Any]]) -> str:
    """Format the scores of models next to those of the first one, as Markdown."""
    first, *others = models
    lines = ["| score | model | before | after | difference |", "|---|---|---|---|---|"]
    for other in others:
        old, new = models[first], models[other]
        for name, half in old["halves"].items():
            after = new["halves"][name]["passed"]
            mean, low, high = interval(half["combinations"], half["passed"], after)
            scores = f"{np.mean(half['passed']):.1%} | {np.mean(after):.1%}"
            lines.append(f"| {name} | {other} | {scores} | {mean:+.1%} ({low:+.1%} to {high:+.1%}) |")
        for name, passed in old["skills"].items():
            after = new["skills"][name]
            change = np.mean(after) - np.mean(passed)
            lines.append(
                f"| {name}, as `evaluate` | {other} | {np.mean(passed):.1%} | {np.mean(after):.1%} | {change:+.1%} |"
            )
        bits = old["caption_bits"], new["caption_bits"]
        lines.append(
            f"| captions, bits per token | {other} | {bits[0]:.4f} | {bits[1]:.4f} | {bits[1] / bits[0] - 1:+.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Write prompts, or score models and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prompts = commands.add_parser("prompts", help="write the prompts of the rollouts")
    prompts.add_argument("out", type=Path)
    prompts.add_argument("--count", type=int, default=2000, metavar="N")
    score = commands.add_parser("score", help="score models, the first one as the baseline")
    score.add_argument("models", nargs="+", metavar="MODEL")
    score.add_argument("--count", type=int, default=200, metavar="N", help="prompts of each score")
    score.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    arguments = parser.parse_args()
    if arguments.command == "prompts":
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(arguments.out, prompt_documents(arguments.count, seed=0))
        return
    torch.set_num_threads(1)
    models = {folder: measure(folder, arguments.count) for folder in arguments.models}
    if arguments.out:
        arguments.out.write_text(json.dumps(models) + "\n")
    print(table(models))


if __name__ == "__main__":
    main()
