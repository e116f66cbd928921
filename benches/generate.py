"""Generation: ours beside transformers' `generate` and a loop like the release's, same weights.

    python benches/generate.py                 on a CPU: 8 layers of width 512, 65,536 ids
    python benches/generate.py --quick         pictures of 256 codes, one round
    python benches/generate.py --size 7B --device cuda --dtype bfloat16

Three jobs: one guided picture; eight requests of which no two are alike, given all at once (text,
pictures, pictures in the prompt, both in one answer); text alone. The weights are random, in the
shape and with the vocabulary of the release, but for one channel of the stream: it is the same for
all ids, and the output layer reads from it that begin-of-image has a fair chance wherever it may
stand, and end-of-sequence none. So all sides make as many text ids and as many codes of each
request, which is checked.

A step can be no quicker than the weights it needs and the keys and values it looks back at come
out of memory. `bandwidth_share` is the share of that limit which a side has reached, with the
bandwidth that products of all weights with one vector reach in the same run. Measures without a
prefix are the guided picture's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds its neighbours too

from benches.asked import Asked, Asker, counted

from benches.measure import OURS, describe_machine, format_result, median_seconds, time_interleaved
from benches.port import generating_port
from benches.port_loop import PortLoop
from benches.release_loop import ReleaseLoop
from calumma.generate.engine import Engine
from calumma.generate.params import EngineConfig, Request
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.presets import PRESETS
from calumma.vocabulary import Vocabulary

BEGIN_LOGIT = 7.2
"""Of begin-of-image, behind any id: 1 in 3 against 49,152 text ids at temperature 0.7; where the
prompt has a picture, the repetition penalty makes it 1 in 12."""

NEVER = -50.0


@dataclass
class Told:
    """What one side did in one call of one job."""

    firsts: list[float]
    """Seconds to each request's first new id."""

    ids: list[list[int]]
    """The new ids of each request."""


Answering = Callable[[Sequence[Asked]], Told]


@torch.no_grad()
def random_decoder(shape: DecoderConfig, vocabulary: Vocabulary, where: argparse.Namespace) -> Any:
    """The decoder that all sides share."""
    with torch.device("meta"):
        decoder = Decoder(shape)
    decoder = decoder.to(getattr(torch, where.dtype)).to_empty(device=where.device).eval()
    generator = torch.Generator(where.device).manual_seed(0)
    for name, parameter in decoder.named_parameters():
        if "norm" in name:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
    decoder.requires_grad_(False)
    decoder.embedding.weight[:, 0] = 1.0
    decoder.head.weight[:, 0] = 0.0
    ids = torch.tensor([vocabulary.text[:64]], device=where.device)
    level = decoder(ids, head_fn=decoder.norm)[0, :, 0].mean()
    for id_, logit in ((vocabulary.begin_image, BEGIN_LOGIT), (vocabulary.eos, NEVER)):
        decoder.head.weight[id_] = 0.0
        decoder.head.weight[id_, 0] = logit / level
    return decoder


def our_side(decoder: Decoder, vocabulary: Vocabulary, codes: int) -> Answering:
    """All requests at once through the engine."""
    # A prompt that is asked again in the next round is to be read again.
    budget = EngineConfig(max_cached_tokens=65_536, max_num_seqs=64, enable_prefix_caching=False)
    engine = Engine(decoder, vocabulary, codes, config=budget)

    def answer(asked: Sequence[Asked]) -> Told:
        requests = [
            Request(
                prompt_token_ids=one.ids,
                max_new_tokens=one.new(codes),
                max_images=one.images,
                image_first=one.at_once,
                seed=one.seed,
            )
            for one in asked
        ]
        states = engine.generate(requests)
        return Told(
            [state.time_to_first_token for state in states],
            [state.output_token_ids for state in states],
        )

    return answer


def one_by_one(loop: PortLoop | ReleaseLoop) -> Answering:
    """A peer's loop, request after request."""

    def answer(asked: Sequence[Asked]) -> Told:
        torch.manual_seed(0)
        told = Told([], [])
        started = time.perf_counter()

        def tell() -> None:
            if len(told.firsts) == len(told.ids):
                told.firsts.append(time.perf_counter() - started)

        for one in asked:
            told.ids.append(loop.answer(one, tell))
        return told

    return answer


def read_bandwidth(decoder: nn.Module) -> float:
    """Bytes of weights a second, in products of every matrix with one vector; the best of five."""
    layers = [m for m in decoder.modules() if isinstance(m, nn.Linear)]
    size = sum(layer.weight.nbytes for layer in layers)
    vectors = [layer.weight.new_ones(1, layer.in_features) for layer in layers]
    seconds = []
    for _ in range(5):
        settle(layers[0].weight.device)
        started = time.perf_counter()
        for layer, vector in zip(layers, vectors, strict=True):
            F.linear(vector, layer.weight)
        settle(layers[0].weight.device)
        seconds.append(time.perf_counter() - started)
    return size / min(seconds)


def settle(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def least_bytes(
    job: Sequence[Asked], shape: DecoderConfig, vocabulary: Vocabulary, codes: int, width: int
) -> float:
    """What has to come out of memory to do a job with all its requests side by side.

    Every step reads the blocks' weights once and the rows of the output layer that the kinds of id
    in play can be; every row of the cache, guidance included, is read at each of its steps.
    """
    inside = shape.model_dim * (2 * shape.model_dim + 3 * shape.feed_forward_dim)
    inside += 2 * shape.model_dim * shape.num_kv_heads * shape.head_dim
    weights = shape.num_layers * inside * max(one.new(codes) for one in job)
    head = max(one.text for one in job) * len(vocabulary.text)
    head += max(one.images for one in job) * codes * vocabulary.num_codes
    slots = 0.0
    for one in job:
        slots += one.new(codes) * (len(one.ids) + one.new(codes) / 2)
        if one.images:
            pictures = sum(id_ in vocabulary.codes for id_ in one.ids)
            slots += codes * (codes / 2 + (pictures + codes / 2 if pictures else 0))
    cache = slots * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    return width * (weights + head * shape.model_dim + cache)


def measures(
    name: str, seconds: float, tolds: Sequence[Told], limit: float, vocabulary: Vocabulary
) -> dict[str, float | None]:
    """One side's figures of one job."""
    made = [counted(ids, vocabulary) for ids in tolds[-1].ids]
    images = sum(ids.count(vocabulary.begin_image) for ids in tolds[-1].ids)
    firsts = statistics.median(first for told in tolds for first in told.firsts)
    found: dict[str, float | None] = {
        "tokens_per_second": round(sum(text + codes for text, codes in made) / seconds, 2),
        "first_token_seconds": round(firsts, 4),
        "bandwidth_share": round(limit / seconds, 4),
    }
    if images:
        found["seconds_per_image"] = round(seconds / images, 3)
    return {key if name == "image" else f"{name}_{key}": value for key, value in found.items()}


def require_equal_work(job: str, tolds: dict[str, list[Told]], vocabulary: Vocabulary) -> None:
    """Stop where sides have not made as many text ids and codes for each request."""
    made = {
        side: [counted(ids, vocabulary) for ids in told.ids]
        for side, calls in tolds.items()
        for told in calls
    }
    if len({str(counts) for counts in made.values()}) > 1:
        raise SystemExit(f"{job}: the sides did not do the same work (text ids, codes): {made}")


def timed(
    sides: dict[str, Answering], job: Sequence[Asked], rounds: int, arguments: argparse.Namespace
) -> tuple[dict[str, list[Told]], dict[str, float]]:
    """What each side did in all rounds of a job, and the middle of its seconds."""
    tolds: dict[str, list[Told]] = {side: [] for side in sides}

    def call(side: str) -> None:
        tolds[side].append(sides[side](job))

    seconds = time_interleaved(
        {side: partial(call, side) for side in sides},
        num_rounds=rounds,
        num_warmups=arguments.warmups,
        synchronize=lambda: settle(torch.device(arguments.device)),
    )
    return tolds, median_seconds(seconds)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 codes a picture, one round")
    parser.add_argument("--size", default="94M", choices=PRESETS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--codes", type=int, help="a picture's codes; 1,024, or 256 with --quick")
    parser.add_argument("--text", type=int, default=64, help="new text ids of a request")
    parser.add_argument("--jobs", nargs="+", default=["image", "mixed", "text"])
    parser.add_argument("--peers", nargs="*", default=["transformers", "release-like"])
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--warmups", type=int, default=0, help="whole calls that are not timed")
    parser.add_argument("--small-vocabulary", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_sides(
    arguments: argparse.Namespace, decoder: Decoder, vocabulary: Vocabulary, codes: int
) -> dict[str, Answering]:
    """Ours, and the peers that are asked for."""
    # The port takes the tensors as they are; an engine may store its own another way.
    port = generating_port(decoder.config, decoder.state_dict())
    sides = {OURS: our_side(decoder, vocabulary, codes)}
    if "transformers" in arguments.peers:
        sides["transformers"] = one_by_one(PortLoop(port, vocabulary, codes))
    if "release-like" in arguments.peers:
        sides["release-like"] = one_by_one(ReleaseLoop(port, vocabulary, codes))
    return sides


def main() -> None:
    """Measure and print."""
    arguments = parse()
    codes = arguments.codes or (256 if arguments.quick else 1024)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    vocabulary = Vocabulary.release()
    if arguments.small_vocabulary:
        vocabulary = Vocabulary(num_codes=64, num_text=1024)
    shape = replace(PRESETS[arguments.size], vocabulary_size=vocabulary.size, dropout=0.0)
    decoder = random_decoder(shape, vocabulary, arguments)
    sides = make_sides(arguments, decoder, vocabulary, codes)
    bandwidth = read_bandwidth(decoder)
    found: dict[str, dict[str, float | None]] = {name: {} for name in sides}
    for answer in sides.values():
        answer([Asked(tuple(vocabulary.text[:8]), text=4)])
    for name, job in Asker(vocabulary, codes).jobs(arguments.text).items():
        if name not in arguments.jobs:
            continue
        tolds, seconds = timed(sides, job, rounds, arguments)
        require_equal_work(name, tolds, vocabulary)
        width = decoder.head.weight.itemsize
        limit = least_bytes(job, shape, vocabulary, codes, width) / bandwidth
        for side in sides:
            found[side] |= measures(name, seconds[side], tolds[side], limit, vocabulary)
            print(f"{name:>6} {side:>13} {seconds[side]:8.2f} s", file=sys.stderr, flush=True)
    print(
        format_result(
            "generate",
            found,
            describe_machine(device=arguments.device),
            bandwidth_bytes_per_second=round(bandwidth),
            setting=vars(arguments) | {"codes": codes, "rounds": rounds},
        )
    )


if __name__ == "__main__":
    main()
