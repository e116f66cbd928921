"""Generation: ours, transformers' `generate` and a loop like the release's, with equal weights.

    python benches/generate.py                 8 layers of width 512, 65,536 token ids
    python benches/generate.py --quick         images of 256 codes, one round
    python benches/generate.py --size 7B       on a GPU
    python benches/generate.py --dtype float32 --peers bfloat16 int8      our engine with other weights

Device, dtype, CUDA graphs, compilation and the capacity of the KV cache are what `calumma generate`
and `calumma serve` choose on the machine, unless options say otherwise.

Jobs: one guided image; a batch of eight different requests (text, images, images in the prompt, both
in one output); text alone; and, if named, eight guided images (`images`), or eight with an image in
each prompt (`edits`). The weights are random, in the shape and with the
vocabulary of the release, but for one channel of the hidden states: it is constant, and gives
begin-of-image a fair probability and end-of-sequence none. So all sides generate the same numbers
of text tokens and codes for each request, which is checked.

A decode step is limited by the memory bandwidth of the weights and the KV cache it reads.
`bandwidth_fraction` is the fraction of that limit which a side reaches, given the bandwidth that
matrix-vector products of all weights reach in the same run. Measures without a prefix are those of
the guided image.
"""

import argparse
import copy
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

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds the other modules too

from benches.generation_requests import BenchRequest, RequestGenerator, count_text_and_codes
from benches.measure import OURS, describe_machine, format_result, median_seconds, time_interleaved
from benches.port import generating_port
from benches.port_loop import PortLoop
from benches.release_loop import ReleaseLoop
from calumma.generate.engine import Engine, compile_blocks
from calumma.generate.engine_defaults import resolve_engine_config
from calumma.generate.params import EngineConfig, Request
from calumma.model.bfloat16_products import prefers_bfloat16_products, use_bfloat16_products
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.presets import PRESETS
from calumma.model.quantization import quantize
from calumma.runtime import dtype_name, resolve_device
from calumma.vocabulary import Vocabulary

BEGIN_LOGIT = 7.2
"""Logit of begin-of-image: probability 1/3 among 49,152 text tokens at temperature 0.7; with an
image in the prompt, the repetition penalty makes it 1/12."""

EOS_LOGIT = -50.0

OTHER_WEIGHTS = ("float32", "bfloat16", "int8")
"""Peers that are our engine on a CPU with other weights."""


@dataclass
class JobOutput:
    """Outputs of one side in one run of a job."""

    times_to_first_token: list[float]
    """Seconds to the first token of each request."""

    token_ids: list[list[int]]
    """Output tokens of each request."""


Side = Callable[[Sequence[BenchRequest]], JobOutput]


@torch.no_grad()
def random_decoder(shape: DecoderConfig, vocabulary: Vocabulary, where: argparse.Namespace) -> Any:
    """Create the decoder that all sides share."""
    with torch.device("meta"):
        decoder = Decoder(shape)
    # A CPU's bfloat16 is that of products, which `make_sides` changes.
    dtype = torch.float32 if where.device == "cpu" else getattr(torch, where.dtype)
    decoder = decoder.to(dtype).to_empty(device=where.device).eval()
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
    for id_, logit in ((vocabulary.begin_image, BEGIN_LOGIT), (vocabulary.eos, EOS_LOGIT)):
        decoder.head.weight[id_] = 0.0
        decoder.head.weight[id_, 0] = logit / level
    return decoder


def our_config(arguments: argparse.Namespace, decoder: Decoder) -> EngineConfig:
    """Return the engine's configuration: the product's on this device, but for the options."""
    config = EngineConfig(
        # A CPU's default would admit the eight requests one after another.
        max_cached_tokens=65_536 if arguments.device == "cpu" else None,
        cuda_graphs=arguments.cuda_graphs,
        compile=arguments.compile,
        # Prefix caching would reuse the prompts of the previous round.
        enable_prefix_caching=False,
    )
    return resolve_engine_config(config, decoder)


def our_side(decoder: Decoder, vocabulary: Vocabulary, codes: int, config: EngineConfig) -> Side:
    """Return our side: all requests as one batch."""
    if config.compile:
        compile_blocks(decoder)
    engine = Engine(decoder, vocabulary, codes, config=config)
    engine.warm_up()

    def run(job: Sequence[BenchRequest]) -> JobOutput:
        requests = [
            Request(
                prompt_token_ids=one.prompt_token_ids,
                max_new_tokens=one.num_new_tokens(codes),
                max_images=one.num_images,
                image_first=one.image_first,
                seed=one.seed,
            )
            for one in job
        ]
        states = engine.generate(requests)
        return JobOutput([state.time_to_first_token for state in states], [state.output_token_ids for state in states])

    return run


def one_by_one(loop: PortLoop | ReleaseLoop) -> Side:
    """Return a peer that runs request after request."""

    def run(job: Sequence[BenchRequest]) -> JobOutput:
        torch.manual_seed(0)
        output = JobOutput([], [])
        started = time.perf_counter()

        def on_token() -> None:
            if len(output.times_to_first_token) == len(output.token_ids):
                output.times_to_first_token.append(time.perf_counter() - started)

        for request in job:
            output.token_ids.append(loop.generate(request, on_token))
        return output

    return run


def read_bandwidth(decoder: nn.Module) -> float:
    """Measure bytes of weights per second in matrix-vector products; the best of five."""
    layers = [m for m in decoder.modules() if isinstance(m, nn.Linear)]
    size = sum(layer.weight.nbytes for layer in layers)
    vectors = [layer.weight.new_ones(1, layer.in_features) for layer in layers]
    seconds = []
    for _ in range(5):
        synchronize(layers[0].weight.device)
        started = time.perf_counter()
        for layer, vector in zip(layers, vectors, strict=True):
            F.linear(vector, layer.weight)
        synchronize(layers[0].weight.device)
        seconds.append(time.perf_counter() - started)
    return size / min(seconds)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def min_bytes(
    job: Sequence[BenchRequest],
    shape: DecoderConfig,
    vocabulary: Vocabulary,
    codes: int,
    itemsize: int,
    block_itemsize: int,
) -> float:
    """Compute the bytes that must be read from memory to run a job as one batch.

    Every step reads the weights of the blocks once, the rows of the output layer for the kinds of
    token to be sampled, and the KV cache of every sequence, guidance included.
    """
    block = shape.model_dim * (2 * shape.model_dim + 3 * shape.feed_forward_dim)
    block += 2 * shape.model_dim * shape.num_kv_heads * shape.head_dim
    weights = shape.num_layers * block * max(one.num_new_tokens(codes) for one in job)
    head = max(one.num_text_tokens for one in job) * len(vocabulary.text)
    head += max(one.num_images for one in job) * codes * vocabulary.num_codes
    slots = 0.0
    for one in job:
        num_new = one.num_new_tokens(codes)
        slots += num_new * (len(one.prompt_token_ids) + num_new / 2)
        if one.num_images:
            _, in_prompt = count_text_and_codes(one.prompt_token_ids, vocabulary)
            slots += codes * (codes / 2 + (in_prompt + codes / 2 if in_prompt else 0))
    cache = slots * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    return block_itemsize * weights + itemsize * (head * shape.model_dim + cache)


def measures(
    name: str, seconds: float, outputs: Sequence[JobOutput], limit: float, vocabulary: Vocabulary
) -> dict[str, float | None]:
    """Compute the measures of one side in one job."""
    counts = [count_text_and_codes(ids, vocabulary) for ids in outputs[-1].token_ids]
    images = sum(ids.count(vocabulary.begin_image) for ids in outputs[-1].token_ids)
    first = statistics.median(t for output in outputs for t in output.times_to_first_token)
    found: dict[str, float | None] = {
        "tokens_per_second": round(sum(map(sum, counts)) / seconds, 2),
        "time_to_first_token_seconds": round(first, 4),
        "bandwidth_fraction": round(limit / seconds, 4),
    }
    if images:
        found["seconds_per_image"] = round(seconds / images, 3)
    return {key if name == "image" else f"{name}_{key}": value for key, value in found.items()}


def require_equal_work(job: str, outputs: dict[str, list[JobOutput]], vocabulary: Vocabulary) -> None:
    """Exit if the sides differ in the numbers of text tokens and codes of any request."""
    found = {
        side: [count_text_and_codes(ids, vocabulary) for ids in output.token_ids]
        for side, runs in outputs.items()
        for output in runs
    }
    if len({str(counts) for counts in found.values()}) > 1:
        raise SystemExit(f"{job}: the sides differ in their text tokens and codes: {found}")


def timed(
    sides: dict[str, Side], job: Sequence[BenchRequest], rounds: int, arguments: argparse.Namespace
) -> tuple[dict[str, list[JobOutput]], dict[str, float]]:
    """Run a job on all sides; returns the outputs and the median seconds of each."""
    outputs: dict[str, list[JobOutput]] = {side: [] for side in sides}

    def call(side: str) -> None:
        outputs[side].append(sides[side](job))

    seconds = time_interleaved(
        {side: partial(call, side) for side in sides},
        num_rounds=rounds,
        num_warmups=arguments.warmups,
        synchronize=lambda: synchronize(torch.device(arguments.device)),
    )
    return outputs, median_seconds(seconds)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 codes per image, one round")
    parser.add_argument("--size", default="94M", choices=PRESETS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--quantization", choices=["int8", "fp8"], help="of our side")
    parser.add_argument("--cuda-graphs", action=argparse.BooleanOptionalAction)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    parser.add_argument("--codes", type=int, help="codes per image: 1,024, or 256 with --quick")
    parser.add_argument("--text", type=int, default=64, help="text tokens to generate")
    parser.add_argument("--jobs", nargs="+", default=["image", "mixed", "text"])
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["transformers", "release-like"],
        help="also our engine with weights float32, bfloat16, int8",
    )
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--warmups", type=int, help="runs that are not timed: 1 on a GPU, else 0")
    parser.add_argument("--small-vocabulary", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    if arguments.dtype == "auto" and prefers_bfloat16_products(device, PRESETS[arguments.size]):
        arguments.dtype = "bfloat16"
    arguments.device, arguments.dtype = str(device), dtype_name(arguments.dtype, device)
    if arguments.warmups is None:
        arguments.warmups = int(device.type == "cuda")
    return arguments


def make_sides(arguments: argparse.Namespace, decoder: Decoder, vocabulary: Vocabulary, codes: int) -> dict[str, Side]:
    """Return our side and the peers chosen on the command line."""
    # The port takes the tensors before our engine changes their memory layout.
    has_port = {"transformers", "release-like"} & set(arguments.peers)
    port = generating_port(decoder.config, decoder.state_dict()) if has_port else None
    others = {name: copy.deepcopy(decoder) for name in arguments.peers if name in OTHER_WEIGHTS}
    config = our_config(arguments, decoder)
    quantize(decoder, arguments.quantization)
    if arguments.device == "cpu" and arguments.dtype == "bfloat16":
        use_bfloat16_products(decoder.blocks)
    sides = {OURS: our_side(decoder, vocabulary, codes, config)}
    for name, other in others.items():
        if name == "bfloat16":
            use_bfloat16_products(other.blocks)
        quantize(other, "int8" if name == "int8" else None)
        sides[name] = our_side(other, vocabulary, codes, config)
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
    bandwidth = read_bandwidth(decoder)
    sides = make_sides(arguments, decoder, vocabulary, codes)
    found: dict[str, dict[str, float | None]] = {name: {} for name in sides}
    for run in sides.values():
        run([BenchRequest(tuple(vocabulary.text[:8]), num_text_tokens=4)])
    for name, job in RequestGenerator(vocabulary, codes).jobs(arguments.text).items():
        if name not in arguments.jobs:
            continue
        outputs, seconds = timed(sides, job, rounds, arguments)
        require_equal_work(name, outputs, vocabulary)
        itemsize = decoder.head.weight.itemsize
        for side in sides:
            block_itemsize = {"bfloat16": 2, "int8": 1}.get(side, itemsize)
            if side == OURS:
                block_itemsize = 1 if arguments.quantization else decoder.blocks[0].feed_forward.up.weight.itemsize
            limit = min_bytes(job, shape, vocabulary, codes, itemsize, block_itemsize) / bandwidth
            found[side] |= measures(name, seconds[side], outputs[side], limit, vocabulary)
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
