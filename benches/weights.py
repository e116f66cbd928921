"""A step of the decoder: whole numbers of eight bits beside other weights, and all of it compiled.

    python benches/weights.py                     on a CPU: the 94M's blocks
    python benches/weights.py --quick             three rounds
    python benches/weights.py --size 37M --compiled
    python benches/weights.py --size 1.5B --device cuda --compiled

A step reads one id in each of 1, 8 and 24 rows that have read 200; a prompt is 256 ids of one row.
Seconds of head and choice are not in it. Sides take turns, with weights in common: ours is
`weights="int8"`; torchao's are its int8, weights alone (what goes in stays as it is) and with what
goes in rounded as ours; "fp8" runs where a GPU multiplies it. `off` is how far what the head reads
is from float32's, as a share of its length.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds its neighbours too

from benches.measure import OURS, describe_machine, format_result, median_seconds, time_interleaved
from calumma.errors import GenerationError
from calumma.generate.engine import compile_blocks
from calumma.generate.model_runner import ModelRunner
from calumma.generate.request import SequenceState
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.model.quantization import quantize, require_fp8

READ = 200
"""Ids that each row has read."""

PROMPT = 256
ROWS = (1, 8, 24)

Change = Callable[[Decoder], None]


def torchao_int8(decoder: Decoder, *, dynamic: bool) -> None:
    """The blocks' matrices by torchao; `dynamic` rounds what goes in as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )
    config = Int8DynamicActivationInt8WeightConfig() if dynamic else Int8WeightOnlyConfig()
    quantize_(decoder.blocks, config, filter_fn=lambda module, _: isinstance(module, nn.Linear))


def plain(decoder: Decoder) -> None:
    """The weights as they are."""


def sides(decoder: Decoder, *, compiled: bool) -> Iterator[tuple[str, Decoder]]:
    """Each side's decoder: weights, type, and whether its blocks are compiled."""
    wide = torch.bfloat16 if decoder.embedding.weight.is_cuda else torch.float32
    changes: dict[str, tuple[torch.dtype, Change]] = {
        OURS: (wide, partial(quantize, quantization="int8")),
        "float32": (torch.float32, plain),
        "bfloat16": (torch.bfloat16, plain),
        "torchao": (wide, partial(torchao_int8, dynamic=False)),
        "torchao-dynamic": (wide, partial(torchao_int8, dynamic=True)),
        "fp8": (torch.bfloat16, partial(quantize, quantization="fp8")),
    }
    for name, (dtype, change) in changes.items():
        made = copy.deepcopy(decoder).to(dtype)
        if name == "fp8":
            try:
                require_fp8(made)
            except GenerationError as error:
                print(f"fp8 is left out: {error}", file=sys.stderr)
                continue
        change(made)
        yield name, made
        # torchao's are left as they are: ours is compared with them, and compiled with itself.
        if compiled and not name.startswith("torchao"):
            again = copy.deepcopy(made)
            compile_blocks(again)
            yield f"{name}-compiled", again


class Steps:
    """One side's steps, again and again."""

    def __init__(self, decoder: Decoder) -> None:
        """A decoder with a cache for all rows."""
        latest = torch.zeros(1, dtype=torch.int64, device=decoder.embedding.weight.device)
        slots = max(ROWS) * 2 * READ + PROMPT
        self.reader = ModelRunner(decoder, slots, latest, cuda_graphs=latest.is_cuda)

    @torch.inference_mode()
    def step(self, count: int) -> Tensor:
        """Read the id behind the first 200 of so many rows; [R, M], what the head reads."""
        rows = [
            SequenceState(
                list(range(READ + 1)), num_computed_tokens=READ, start_slot=2 * READ * number
            )
            for number in range(count)
        ]
        return self.reader.execute([(row, 1) for row in rows])

    @torch.inference_mode()
    def prompt(self, ids: int = PROMPT) -> Tensor:
        """Read so many ids of one row; [T, M]."""
        return self.reader.execute([(SequenceState(list(range(ids)), start_slot=0), ids)])

    def begin(self) -> None:
        """Fill the cache, so that attention has something to look at."""
        for number in range(max(ROWS)):
            row = SequenceState(list(range(number, number + READ)), start_slot=2 * READ * number)
            with torch.inference_mode():
                self.reader.execute([(row, READ)])


def nbytes(module: nn.Module) -> int:
    """Bytes of a module's tensors, torchao's insides counted."""
    tensors = [*module.parameters(), *module.buffers()]
    inside = [
        [getattr(tensor, name) for name in ("qdata", "scale")]
        if hasattr(tensor, "qdata")
        else [tensor]
        for tensor in tensors
    ]
    return sum(tensor.nbytes for group in inside for tensor in group)


def random_decoder(size: str, device: str) -> Decoder:
    """Weights of a fresh decoder; of the vocabulary a little, since no head is measured."""
    decoder = Decoder(preset(size, vocabulary_size=1024, dropout=0.0))
    decoder.init_weights(0)
    return decoder.to(device).eval().requires_grad_(False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--size", default="94M", help="one of the named sizes")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="each side compiled, too")
    busy = "count the processor's seconds, of all threads: for a busy machine"
    parser.add_argument("--processor", action="store_true", help=busy)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 3
    decoder = random_decoder(arguments.size, arguments.device)
    decoders = dict(sides(decoder, compiled=arguments.compiled))
    weight_bytes = {name: nbytes(made.blocks) for name, made in decoders.items()}
    steps = {name: Steps(made) for name, made in decoders.items()}
    for each in steps.values():
        each.begin()
    settle = torch.cuda.synchronize if arguments.device.startswith("cuda") else lambda: None
    clock = time.process_time if arguments.processor else time.perf_counter
    found: dict[str, dict[str, float | None]] = {}
    expected = steps["float32"].step(8).float().clone()
    for name, each in steps.items():
        off = (each.step(8).float() - expected).norm() / expected.norm()
        found[name] = {"weight_bytes": weight_bytes[name], "off": round(float(off), 5)}
    for label, work in [
        *((f"step_of_{count}_rows", partial(Steps.step, count=count)) for count in ROWS),
        ("prompt", Steps.prompt),
    ]:
        turns = {name: partial(work, each) for name, each in steps.items()}
        for name, middle in median_seconds(
            time_interleaved(
                turns, num_rounds=arguments.rounds, num_warmups=3, clock=clock, synchronize=settle
            )
        ).items():
            found[name][f"{label}_seconds"] = round(middle, 7)
            print(f"{label:>16} {name:>20} {middle * 1e3:9.3f} ms", file=sys.stderr, flush=True)
    print(
        format_result(
            "weights", found, describe_machine(device=arguments.device), setting=vars(arguments)
        )
    )


if __name__ == "__main__":
    main()
