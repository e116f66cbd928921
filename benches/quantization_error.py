"""Perplexity of text and image tokens under each precision and quantization, and greedy tokens that change.

    python benches/quantization_error.py out/demo/model out/demo/shards
    python benches/quantization_error.py MODEL SHARDS --num-sequences 100

Reads sequences at even distances in the shards. `changed` is the share of image tokens whose most
likely code differs from that in float32, `changed_text` that of text and control tokens, among all.
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
from calumma.generate.model import Model
from calumma.shards.reader import ShardReader

SIDES: dict[str, dict[str, str | None]] = {
    "float32": {"dtype": "float32", "quantization": None},
    "bfloat16": {"dtype": "bfloat16", "quantization": None},
    "int8": {"dtype": "float32", "quantization": "int8"},
    "int4": {"dtype": "float32", "quantization": "int4"},
}


def sequences(shards: Path, num_sequences: int) -> Iterator[list[int]]:
    """Yield the token ids of sequences at even distances in the shards."""
    reader = ShardReader(shards)
    for number in range(num_sequences):
        token_ids, _ = reader.read(number * len(reader) // num_sequences)
        yield token_ids.tolist()


def measure(model: Model, all_ids: list[list[int]]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return the perplexity by modality, and the most likely code or token at each token of it."""
    codes = model.vocabulary.codes
    sums = {"text": [0.0, 0], "image": [0.0, 0]}
    best: dict[str, list[torch.Tensor]] = {"text": [], "image": []}
    for ids in all_ids:
        logits, labels = model.logits(ids)[0, :-1], torch.tensor(ids[1:])
        losses = F.cross_entropy(logits[:, : model.vocabulary.size], labels, reduction="none")
        is_code = (labels >= codes.start) & (labels < codes.stop)
        for kind, mask in (("text", ~is_code), ("image", is_code)):
            sums[kind][0] += float(losses[mask].sum())
            sums[kind][1] += int(mask.sum())
        best["image"].append(logits[is_code, codes.start : codes.stop].argmax(dim=-1))
        best["text"].append(logits[~is_code].argmax(dim=-1))
    perplexity = {kind: math.exp(total / max(1, count)) for kind, (total, count) in sums.items()}
    return perplexity, {kind: torch.cat(ids) for kind, ids in best.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--num-sequences", type=int, default=500)
    arguments = parser.parse_args()
    all_ids = list(sequences(arguments.shards, arguments.num_sequences))
    expected: dict[str, torch.Tensor] = {}
    for name, options in SIDES.items():
        model = calumma.load(arguments.model, device="cpu", **options)  # type: ignore[arg-type]
        perplexity, best = measure(model, all_ids)
        expected = expected or best
        changed = {kind: float((best[kind] != expected[kind]).float().mean()) for kind in best}
        row = {"changed": changed["image"], "changed_text": changed["text"], "num_tokens": sum(map(len, all_ids))}
        print(json.dumps({"side": name, **perplexity, **row}))
    print(json.dumps(describe_machine(device="cpu")))


if __name__ == "__main__":
    main()
