"""Perplexity of text and image tokens under each precision and quantization, and greedy tokens that change.

    python benches/quantization_error.py out/demo/model out/demo/shards
    python benches/quantization_error.py still-life SHARDS --num-sequences 300 --judge 50

Reads sequences at even distances in the shards. `text` and `image` are perplexities of the tokens in
the loss mask. `changed` is the share of image tokens whose most
likely code differs from that in float32, `changed_text` that of text and control tokens, among all.
`weight_bytes` is the size of the decoder in memory. With --judge a model of still lifes draws N
prompts of each drawing skill of `calumma evaluate --tasks still-lifes`; `drawn` is the share of
images that show what was asked, as the judge reads them.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds the other modules too

import calumma
from benches.measure import describe_machine
from benches.weights import nbytes
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_prompts import DRAWING_SKILLS, sample_drawing_prompts
from calumma.evaluate.still_lifes import draw_captions
from calumma.generate.model import Model
from calumma.shards.reader import ShardReader

SIDES: dict[str, dict[str, str | None]] = {
    "float32": {"dtype": "float32", "quantization": None},
    "bfloat16": {"dtype": "bfloat16", "quantization": None},
    "int8": {"dtype": "float32", "quantization": "int8"},
    "int4": {"dtype": "float32", "quantization": "int4"},
}


def sequences(shards: Path, num_sequences: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield the token ids and loss masks of sequences at even distances in the shards."""
    reader = ShardReader(shards)
    for number in range(num_sequences):
        token_ids, loss_mask = reader.read(number * len(reader) // num_sequences)
        yield token_ids.tolist(), torch.tensor(loss_mask)


def measure(
    model: Model, documents: list[tuple[list[int], torch.Tensor]]
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return the perplexity by modality, and the most likely code or token at each token of it."""
    codes = model.vocabulary.codes
    sums = {"text": [0.0, 0], "image": [0.0, 0]}
    best: dict[str, list[torch.Tensor]] = {"text": [], "image": []}
    for ids, loss_mask in documents:
        logits, labels = model.logits(ids)[0, :-1], torch.tensor(ids[1:])
        losses = F.cross_entropy(logits[:, : model.vocabulary.size], labels, reduction="none")
        is_code = (labels >= codes.start) & (labels < codes.stop)
        for kind, mask in (("text", ~is_code), ("image", is_code)):
            is_trained = mask & loss_mask[1:]
            sums[kind][0] += float(losses[is_trained].sum())
            sums[kind][1] += int(is_trained.sum())
        best["image"].append(logits[is_code, codes.start : codes.stop].argmax(dim=-1))
        best["text"].append(logits[~is_code].argmax(dim=-1))
    perplexity = {kind: math.exp(total / max(1, count)) for kind, (total, count) in sums.items()}
    return perplexity, {kind: torch.cat(ids) for kind, ids in best.items()}


def judge(model: Model, num_prompts: int) -> float:
    """Return the share of images that show what was asked, of this many prompts of each drawing skill."""
    passed = []
    for skill in DRAWING_SKILLS:
        prompts = sample_drawing_prompts(skill, num_prompts, seed=0)
        images = draw_captions(model, [prompt.caption for prompt in prompts], EvalConfig(seed=0))
        passed += [
            image is not None and prompt.score(read_still_life(image).scene)
            for prompt, image in zip(prompts, images, strict=True)
        ]
    return sum(passed) / len(passed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--num-sequences", type=int, default=500)
    parser.add_argument("--judge", type=int, default=0, metavar="N", help="draw N prompts of each skill")
    arguments = parser.parse_args()
    documents = list(sequences(arguments.shards, arguments.num_sequences))
    num_tokens = sum(len(ids) for ids, _ in documents)
    expected: dict[str, torch.Tensor] = {}
    for name, options in SIDES.items():
        model = calumma.load(arguments.model, device="cpu", **options)  # type: ignore[arg-type]
        perplexity, best = measure(model, documents)
        expected = expected or best
        changed = {kind: float((best[kind] != expected[kind]).float().mean()) for kind in best}
        row = {"changed": changed["image"], "changed_text": changed["text"], "num_tokens": num_tokens}
        row["weight_bytes"] = nbytes(model.decoder)
        if arguments.judge:
            row["drawn"] = judge(model, arguments.judge)
        print(json.dumps({"side": name, **perplexity, **row}), flush=True)
    print(json.dumps(describe_machine(device="cpu")))


if __name__ == "__main__":
    main()
