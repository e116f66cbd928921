"""Images in fewer steps: steps, seconds and the judge's score of each way, and bits of both orders.

    python studies/speculative/diagonal.py out/downward/run/model --count 100
    python studies/speculative/diagonal.py out/grid-16/run/model --simple --batch-size 1

The model has a downward head (`runs/still-life-downward.toml`, `runs/still-life-grid-16.toml`). The
ways alternate, batch by batch, in one process, each with the model's own sampling parameters.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from grid import is_simple

import calumma
from calumma.batches.batch import Batch
from calumma.evaluate.metric import bootstrap_interval
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_prompts import DRAWING_SKILLS, DrawingPrompt, sample_drawing_prompts
from calumma.generate.model import Model
from calumma.generate.params import Request
from calumma.train.downward_training import combine_neighbors, diagonal_batch

PLAIN, DIAGONAL, GREEDY = "one code per step", "diagonal", "diagonal, temperature 0"
SPECULATIVE = {f"{count} speculative tokens": count for count in (8, 16, 32)}
WAYS = (PLAIN, *SPECULATIVE, DIAGONAL, GREEDY)


def sample_prompts(skill: str, count: int, *, simple: bool) -> list[DrawingPrompt]:
    """Sample prompts of a skill; with `simple` those that the model of 16 x 16 codes can draw."""
    if not simple:
        return sample_drawing_prompts(skill, count, 0)
    prompts = sample_drawing_prompts(skill, 100 * count, 0)
    return [prompt for prompt in prompts if is_simple(prompt.scene)][:count]


def request(model: Model, prompt: DrawingPrompt, seed: int, way: str) -> Request:
    """Build the request of an image."""
    sampling = replace(model.default_image_sampling, num_speculative_tokens=SPECULATIVE.get(way, 0))
    if way == GREEDY:
        sampling = replace(sampling, temperature=0.0)
    return model.request(
        [f"Draw {prompt.caption}."],
        seed=seed,
        modality="image",
        max_images=1,
        max_new_tokens=model.image.config.codes_per_image + 2,
        image=sampling,
        image_decoding="diagonal" if way in (DIAGONAL, GREEDY) else "raster",
    )


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


def code_bits(model: Model, prompts: Sequence[DrawingPrompt]) -> tuple[float, float]:
    """Return the mean bits per code of the rendered scenes, one by one and diagonal by diagonal."""
    decoder, vocabulary = model.decoder, model.vocabulary
    bits: tuple[list[float], list[float]] = ([], [])
    side = model.image.config.resolution
    for prompt in prompts:
        context = model.encode_chat([{"role": "user", "content": f"Draw {prompt.caption}."}])
        (codes,) = model.image.encode_images([prompt.scene.render(side)])
        image = [vocabulary.begin_image, *map(vocabulary.code_to_id, codes), vocabulary.end_image]
        ids = np.array([[*context, *image, vocabulary.eos]])
        positions = np.arange(ids.shape[1] - 1)[None]
        batch = Batch(ids[:, :-1], ids[:, 1:], positions >= len(context), np.zeros_like(positions), positions)
        diagonal, neighbors = diagonal_batch(batch, vocabulary, every=1)
        for found, ordered, order in ((bits[0], batch, None), (bits[1], diagonal, neighbors)):
            inputs, position_ids, labels = (
                torch.from_numpy(array) for array in (ordered.input_ids, ordered.position_ids, ordered.labels)
            )
            with torch.inference_mode():
                hidden = decoder(inputs, position_ids=position_ids, head_fn=decoder.norm)
                logits = decoder.head(combine_neighbors(hidden, order, decoder.downward_head)).float()
                logprobs = logits.log_softmax(dim=-1).gather(2, labels[..., None])[neighbors.is_code]
            found.append(-float(logprobs.mean()) / np.log(2))
    return float(np.mean(bits[0])), float(np.mean(bits[1]))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="prompts of each skill")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--skill", nargs="+", choices=[*DRAWING_SKILLS], default=[*DRAWING_SKILLS])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=[PLAIN, "8 speculative tokens", DIAGONAL])
    parser.add_argument("--simple", action="store_true", help="prompts of the model of 16 x 16 codes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = calumma.load(arguments.model, device="cpu")
    ways, size = arguments.way, arguments.batch_size
    passed: dict[str, list[bool]] = {way: [] for way in ways}
    equal = dict.fromkeys(ways, 0)
    steps, seconds = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    prompts = [p for skill in arguments.skill for p in sample_prompts(skill, arguments.count, simple=arguments.simple)]
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    for number, batch in enumerate(batches):
        first: list[list[int]] = []
        for way in ways:
            requests = [request(model, prompt, number * size + i, way) for i, prompt in enumerate(batch)]
            images, count, took = run(model, requests)
            first = first or images
            equal[way] += sum(one == other for one, other in zip(images, first, strict=True))
            steps[way] += count
            seconds[way] += took
            passed[way] += [
                prompt.score(read_still_life(model.decode_image(codes)).scene)
                for prompt, codes in zip(batch, images, strict=True)
            ]
    print("| way | steps per batch | seconds per image | equal images | judge's score | difference |")
    print("|---|---|---|---|---|---|")
    for way in ways:
        difference = np.array(passed[way], dtype=float) - np.array(passed[ways[0]], dtype=float)
        low, high = bootstrap_interval(difference, seed=0)
        print(
            f"| {way} | {steps[way] / len(batches):.1f} | {seconds[way] / len(prompts):.3f} | "
            f"{equal[way]} of {len(prompts)} | {np.mean(passed[way]):.1%} | "
            f"{difference.mean():+.1%} ({low:+.1%} to {high:+.1%}) |"
        )
    starts = range(0, len(prompts), len(prompts) // len(arguments.skill))
    for skill, start in zip(arguments.skill, starts, strict=False):
        scores = [f"{np.mean(passed[way][start : start + arguments.count]):.1%}" for way in ways]
        print(f"{skill}: {', '.join(scores)}")
    if model.decoder.downward_head is not None:
        raster, diagonal = code_bits(model, prompts[:: max(1, len(prompts) // 60)])
        print(f"bits per code of rendered scenes: {raster:.4f} one by one, {diagonal:.4f} diagonal by diagonal")


if __name__ == "__main__":
    main()
