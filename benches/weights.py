"""Decode and prefill steps: int8 weights, other dtypes, torchao, and all of them compiled.

    python benches/weights.py                     on a CPU: the 94M's blocks
    python benches/weights.py --quick             three rounds
    python benches/weights.py --size 37M --compiled
    python benches/weights.py --size 1.5B --device cuda --compiled

A decode step computes one token for a batch of 1, 8 and 24 sequences of 200 tokens; prefill
computes a prompt of 256 tokens. Head and sampling are not measured. Sides are interleaved and share
their weights: ours is `quantization="int8"`; "int4-bfloat16" has all else in bfloat16, the default
on CPUs that multiply it; torchao's are int8 weights only, and with activations
quantized like ours; "fp8" runs on GPUs that multiply it. `relative_error` is the distance of the
head's input from that in float32, relative to its norm. A table in Markdown is printed before the JSON.
"""

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

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds the other modules too

from benches.measure import OURS, describe_machine, format_result, median_seconds, time_interleaved
from calumma.errors import GenerationError
from calumma.generate.engine import compile_blocks
from calumma.generate.model_runner import ModelRunner
from calumma.generate.sequence_state import SequenceState
from calumma.model.bfloat16_products import use_bfloat16_products
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.model.quantization import quantize, require_fp8
from calumma.model.varlen_attention import has_flash_kernel

CONTEXT_LENGTH = 200
"""Tokens of each sequence before a decode step."""

PROMPT_LENGTH = 256
BATCH_SIZES = (1, 8, 24)

QuantizeFn = Callable[[Decoder], None]


def torchao_int8(decoder: Decoder, *, dynamic: bool) -> None:
    """Quantize the blocks by torchao; `dynamic` quantizes activations as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
    config = Int8DynamicActivationInt8WeightConfig() if dynamic else Int8WeightOnlyConfig()
    quantize_(decoder.blocks, config, filter_fn=lambda module, _: isinstance(module, nn.Linear))


def keep(decoder: Decoder) -> None:
    """Leave the weights as they are."""


def bfloat16_products(decoder: Decoder) -> None:
    """Change the matrices as `dtype="bfloat16"` does on a CPU."""
    use_bfloat16_products(decoder.blocks)


def sides(decoder: Decoder, *, compiled: bool) -> Iterator[tuple[str, Decoder]]:
    """Yield the name and the decoder of each side."""
    wide = torch.bfloat16 if decoder.embedding.weight.is_cuda else torch.float32
    changes: dict[str, tuple[torch.dtype, QuantizeFn]] = {
        OURS: (wide, partial(quantize, quantization="int8")),
        "int4": (wide, partial(quantize, quantization="int4")),
        "int4-bfloat16": (torch.bfloat16, partial(quantize, quantization="int4")),
        "float32": (torch.float32, keep),
        "bfloat16": (wide, bfloat16_products) if wide == torch.float32 else (wide, keep),
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
        # Compiled sides are compared with themselves; torchao's stay as they are.
        if compiled and not name.startswith("torchao"):
            again = copy.deepcopy(made)
            compile_blocks(again)
            yield f"{name}-compiled", again


class StepRunner:
    """Runs the steps of one side."""

    def __init__(self, decoder: Decoder) -> None:
        """Allocate a KV cache for the largest batch."""
        last_token_ids = torch.zeros(1, dtype=torch.int64, device=decoder.embedding.weight.device)
        num_slots = max(BATCH_SIZES) * 2 * CONTEXT_LENGTH + PROMPT_LENGTH
        weight = decoder.embedding.weight
        cuda_graphs = has_flash_kernel(weight.device, weight.dtype, decoder.config.head_dim)
        self.runner = ModelRunner(decoder, num_slots, last_token_ids, cuda_graphs=cuda_graphs)

    @torch.inference_mode()
    def decode(self, batch_size: int) -> Tensor:
        """Compute one token for each sequence; returns [R, M], the input of the head."""
        return self.runner.execute(
            [
                (SequenceState([*range(CONTEXT_LENGTH + 1)], CONTEXT_LENGTH, start_slot), 1)
                for start_slot in start_slots(batch_size)
            ]
        )

    @torch.inference_mode()
    def prefill(self) -> Tensor:
        """Compute a prompt; returns [T, M]."""
        sequence = SequenceState([*range(PROMPT_LENGTH)], start_slot=0)
        return self.runner.execute([(sequence, PROMPT_LENGTH)])

    @torch.inference_mode()
    def fill_cache(self) -> None:
        """Compute the contexts that decode steps attend to."""
        for number, start_slot in enumerate(start_slots(max(BATCH_SIZES))):
            token_ids = [*range(number, number + CONTEXT_LENGTH)]
            sequence = SequenceState(token_ids, start_slot=start_slot)
            self.runner.execute([(sequence, CONTEXT_LENGTH)])


def start_slots(batch_size: int) -> list[int]:
    """Return the first cache slot of each sequence of a batch."""
    return [2 * CONTEXT_LENGTH * number for number in range(batch_size)]


def nbytes(module: nn.Module) -> int:
    """Count the bytes of a module's tensors, those inside torchao's tensors included."""
    tensors = [*module.parameters(), *module.buffers()]
    inside = [
        [getattr(tensor, name) for name in ("qdata", "scale")] if hasattr(tensor, "qdata") else [tensor]
        for tensor in tensors
    ]
    return sum(tensor.nbytes for group in inside for tensor in group)


def random_decoder(size: str, device: str) -> Decoder:
    """Create a decoder of random weights; its vocabulary is small, as no head is measured."""
    decoder = Decoder(preset(size, vocabulary_size=1024, dropout=0.0))
    decoder.init_weights(0)
    return decoder.to(device).eval().requires_grad_(False)


def markdown_table(found: dict[str, dict[str, float | None]]) -> str:
    """Return tokens per second, and the weights of the blocks relative to bfloat16's, as Markdown."""
    tokens = {f"decode_batch_{number}": number for number in BATCH_SIZES} | {"prefill": PROMPT_LENGTH}
    batches = [f"decode, {BATCH_SIZES[0]} sequence", *map(str, BATCH_SIZES[1:])]
    head = ["weights", "memory of the blocks, of bfloat16's", *batches, f"prefill of {PROMPT_LENGTH}"]
    rows = [head, ["---"] * len(head)]
    for name, measured in found.items():
        ratio = (measured["weight_bytes"] or 0) / (found["bfloat16"]["weight_bytes"] or 1)
        speeds = (count / (measured[f"{step}_seconds"] or 1) for step, count in tokens.items())
        rows.append([name.replace(OURS, "int8"), f"{ratio:.2f}", *(f"{speed:,.0f}" for speed in speeds)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--size", default="94M", help="name of a preset")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="measure each side compiled, too")
    busy = "measure CPU seconds of all threads: for a busy machine"
    parser.add_argument("--processor", action="store_true", help=busy)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 3
    decoder = random_decoder(arguments.size, arguments.device)
    decoders = dict(sides(decoder, compiled=arguments.compiled))
    weight_bytes = {name: nbytes(made.blocks) for name, made in decoders.items()}
    runners = {name: StepRunner(made) for name, made in decoders.items()}
    for runner in runners.values():
        runner.fill_cache()
    settle = torch.cuda.synchronize if arguments.device.startswith("cuda") else lambda: None
    clock = time.process_time if arguments.processor else time.perf_counter
    found: dict[str, dict[str, float | None]] = {}
    expected = runners["float32"].decode(8).float().clone()
    for name, runner in runners.items():
        error = (runner.decode(8).float() - expected).norm() / expected.norm()
        found[name] = {"weight_bytes": weight_bytes[name], "relative_error": round(float(error), 5)}
    for label, step in [
        *((f"decode_batch_{n}", partial(StepRunner.decode, batch_size=n)) for n in BATCH_SIZES),
        ("prefill", StepRunner.prefill),
    ]:
        calls = {name: partial(step, runner) for name, runner in runners.items()}
        for name, middle in median_seconds(
            time_interleaved(calls, num_rounds=arguments.rounds, num_warmups=3, clock=clock, synchronize=settle)
        ).items():
            found[name][f"{label}_seconds"] = round(middle, 7)
            print(f"{label:>16} {name:>20} {middle * 1e3:9.3f} ms", file=sys.stderr, flush=True)
    print(markdown_table(found))
    print(format_result("weights", found, describe_machine(device=arguments.device), setting=vars(arguments)))


if __name__ == "__main__":
    main()
