"""Compare a training step with transformers' port of Chameleon: same weights, same batch.

    python benches/train_step.py                 on a CPU: 6 layers of width 256, 65,536 ids
    python benches/train_step.py --device cuda --size 1.5B --batch-size 4 --seq-len 4096
    python benches/train_step.py --quick         fewer rounds; --size tiny for seconds

Both sides compute cross-entropy over the whole vocabulary, clip gradients to norm 1, and use
torch's fused AdamW; ours also has a z-loss. The port's forward masks the logits of all image
tokens, so that a batch with images has no finite loss: here its hidden states go to its own head
and to torch's cross-entropy instead.

Precision and compilation are what `calumma pretrain` chooses on the device, unless options say
otherwise; alone on a GPU, ours also has the dropout of its size and FSDP2. On a CPU the port has two
sides: float32, and bfloat16 autocast where the CPU multiplies bfloat16.

FLOPs per token are 6 per weight except the embedding's, and 12 per layer, channel and key that a
token attends to. `mfu` is their fraction of the device's peak with the keys of a full row, the usual
count; `mfu_documents` with the keys that are left by causal attention within documents. The peak of
a CPU is the best of several products of large matrices in the same run, in the side's precision.
"""

import argparse
import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository, when run as a script

from benches.measure import child_peak_memory_bytes, describe_machine, format_result, median_seconds, time_interleaved
from benches.port import trained_port
from calumma.batches.batch import Batch
from calumma.model.bfloat16_products import has_bfloat16_products
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder, flops_per_token
from calumma.model.presets import PRESETS
from calumma.train.compile_and_recompute import apply_recompute_and_compile, compute_dtype
from calumma.train.config import ComputeConfig, OptimizerConfig, ParallelConfig
from calumma.train.decoder_trainer import optimizer_step
from calumma.train.distributed import SINGLE_PROCESS, init_distributed
from calumma.train.float8 import to_float8
from calumma.train.optimizer import make_optimizers
from calumma.train.parallelize import parallelize_decoder
from calumma.vocabulary import Vocabulary

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s of GPUs, from the data sheets."""

AUTOCAST = "transformers-bfloat16"
"""The port under bfloat16 autocast, on a CPU."""

BENCH_SHAPE = replace(PRESETS["37M"], num_layers=6, dropout=0.0)
SHAPES = PRESETS | {"bench": BENCH_SHAPE, "tiny": replace(PRESETS["tiny"], vocabulary_size=16_384)}


@dataclass(frozen=True)
class BenchSetting:
    """Parameters of both sides."""

    shape: DecoderConfig
    batch_size: int
    seq_len: int
    documents_per_row: int
    """Documents per packed sequence; the port attends across their boundaries."""

    device: torch.device
    compute: ComputeConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Of our side."""

    def dtype_of(self, side: str) -> torch.dtype:
        """Return the dtype of a side's matrix products."""
        if side == "transformers" and self.device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if side == AUTOCAST else compute_dtype(self.compute, self.device, self.shape.model_dim)

    @property
    def num_tokens(self) -> int:
        """Number of labels of one step."""
        return self.batch_size * self.seq_len


def random_batch(setting: BenchSetting) -> Batch:
    """Return packed sequences of uniformly random tokens."""
    generator = np.random.default_rng(0)
    ids = generator.integers(4, setting.shape.vocabulary_size, (setting.batch_size, setting.seq_len + 1))
    positions = np.arange(setting.seq_len)
    document_length = -(-setting.seq_len // setting.documents_per_row)
    return Batch(
        input_ids=ids[:, :-1].copy(),
        labels=ids[:, 1:].copy(),
        loss_mask=np.ones((setting.batch_size, setting.seq_len), dtype=np.bool_),
        document_ids=np.tile(positions // document_length, (setting.batch_size, 1)),
        position_ids=np.tile(positions % document_length, (setting.batch_size, 1)),
    )


@contextlib.contextmanager
def count_host_waits(device: torch.device, counts: list[int]) -> Iterator[None]:
    """Append how often the block waited for the GPU, by PyTorch's warnings; nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    counts.append(sum("synchroniz" in str(warning.message) for warning in caught))


def calumma_step(setting: BenchSetting, batch: Batch, host_waits: list[int]) -> Callable[[], None]:
    """Return the training step of `calumma pretrain`; each appends its waits for the GPU."""
    decoder = Decoder(setting.shape)
    decoder.init_weights(0)
    if setting.compute.precision == "float8":
        to_float8(decoder, setting.compute.float8_scaling, emulate=setting.device.type == "cpu")
    decoder = decoder.to(setting.device).train()
    dtype = setting.dtype_of("ours")
    layout = parallelize_decoder(decoder, SINGLE_PROCESS, ParallelConfig(), setting.device.type, dtype)
    apply_recompute_and_compile(decoder, setting.compute)
    optimizers = make_optimizers(decoder, setting.optimizer)

    def step() -> None:
        with count_host_waits(setting.device, host_waits):
            launched = optimizer_step(
                decoder,
                optimizers,
                [batch],
                vocabulary=build_vocabulary(setting.shape),
                z_loss_weight=1e-5,
                max_grad_norm=1.0,
                layout=layout,
            )
        print_loss("ours", launched.read().loss)

    return step


def transformers_step(
    setting: BenchSetting, batch: Batch, host_waits: list[int], side: str = "transformers"
) -> Callable[[], None]:
    """Return the same step with transformers' model."""
    ours = Decoder(setting.shape)
    ours.init_weights(0)
    port = trained_port(setting.shape, ours.state_dict()).to(setting.device).train()
    named = [one for one in port.named_parameters() if "vqmodel" not in one[0]]
    parameters = [p for _, p in named]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for name, p in named if "norm" not in name]},
            {"params": [p for name, p in named if "norm" in name], "weight_decay": 0.0},
        ],
        lr=1e-4,
        betas=(0.9, 0.95),
        eps=1e-5,
        weight_decay=0.1,
        fused=True,
    )
    dtype = setting.dtype_of(side)
    kind = setting.device.type
    ids, targets = (torch.from_numpy(one).to(setting.device) for one in (batch.input_ids, batch.labels))
    read: Any = port.model
    if setting.compute.compile == "inductor":
        read = torch.compile(read)

    def step() -> None:
        with torch.autocast(kind, dtype=dtype, enabled=dtype != torch.float32):
            logits = port.lm_head(read(input_ids=ids, use_cache=False).last_hidden_state)
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print_loss(side, float(loss.detach()))

    return step


def build_vocabulary(shape: DecoderConfig) -> Vocabulary:
    """Return the vocabulary of the release, or a smaller one of the given size."""
    release = Vocabulary.release()
    if shape.vocabulary_size == release.size:
        return release
    empty = Vocabulary(num_codes=64, num_text=1)
    return Vocabulary(num_codes=64, num_text=shape.vocabulary_size - empty.size + 1)


def print_loss(side: str, loss: float) -> None:
    """Print the loss on stderr; both sides must have the same losses."""
    print(f"{side:>21} loss {loss:.4f}", file=sys.stderr)


SIDES: dict[str, Callable[[BenchSetting, Batch, list[int]], Callable[[], None]]] = {
    "ours": calumma_step,
    "transformers": transformers_step,
    AUTOCAST: partial(transformers_step, side=AUTOCAST),
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak FLOP/s: of a GPU by its data sheet, of a CPU by matrix products."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for known, peak in PEAK_FLOPS.items() if known in name), float("nan"))
    one, other, out = (torch.rand(2048, 2048).to(dtype) for _ in range(3))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        torch.mm(one, other, out=out)
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(seconds)


def peak_memory(side: str, arguments: argparse.Namespace, setting: BenchSetting) -> int:
    """Return the peak memory in bytes of two steps: allocated on a GPU, else of a process."""
    if setting.device.type == "cpu":
        words = [sys.executable, __file__, "--side", side]
        for name in ("size", "batch_size", "seq_len", "documents", "precision", "compile", "activation_checkpointing"):
            words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        return child_peak_memory_bytes(words)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run_two_steps(side, setting)
    return torch.cuda.max_memory_allocated()


def run_two_steps(side: str, setting: BenchSetting) -> None:
    """Run two steps; the first allocates the optimizer state."""
    step = SIDES[side](setting, random_batch(setting), [])
    step()
    step()


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds; with --only-ours no peak memory")
    parser.add_argument("--size", default="bench", choices=SHAPES)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--documents", type=int, default=1, help="documents per packed sequence")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16", "float8"])
    parser.add_argument("--compile", default="auto", choices=["auto", "none", "inductor"])
    parser.add_argument("--activation-checkpointing", default="none", choices=["none", "selective", "full"])
    parser.add_argument("--only-ours", action="store_true", help="where the port does not fit")
    parser.add_argument("--side", choices=[*SIDES], help=argparse.SUPPRESS)
    return parser.parse_args()


def make_setting(arguments: argparse.Namespace) -> BenchSetting:
    """Return the parameters of the command line."""
    is_product = arguments.only_ours and arguments.device != "cpu"
    return BenchSetting(
        shape=SHAPES[arguments.size] if is_product else replace(SHAPES[arguments.size], dropout=0.0),
        batch_size=arguments.batch_size,
        seq_len=arguments.seq_len,
        documents_per_row=arguments.documents,
        device=torch.device(arguments.device),
        compute=ComputeConfig(
            precision=arguments.precision,
            compile=arguments.compile,
            activation_checkpointing=arguments.activation_checkpointing,
        ),
    )


def main() -> None:
    """Measure and print the results."""
    arguments = parse_arguments()
    is_alone = arguments.only_ours and arguments.device != "cpu"
    with init_distributed(torch.device(arguments.device), Path(), groups_one_rank=is_alone):
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Measure in a process group, or in none, and print the results."""
    setting = make_setting(arguments)
    if arguments.side:
        run_two_steps(arguments.side, setting)
        return
    names = ["ours", *(() if arguments.only_ours else ("transformers",))]
    if not arguments.only_ours and has_bfloat16_products(setting.device):
        names.append(AUTOCAST)
    has_peak = not (arguments.only_ours and arguments.quick)
    peaks = {name: peak_memory(name, arguments, setting) if has_peak else None for name in names}
    batch, host_waits = random_batch(setting), list[int]()
    synchronize = torch.cuda.synchronize if setting.device.type == "cuda" else lambda: None
    seconds = time_interleaved(
        {name: SIDES[name](setting, batch, host_waits) for name in names},
        num_rounds=3 if arguments.quick else arguments.rounds,
        num_warmups=1 if setting.device.type == "cpu" and arguments.compile != "inductor" else 3,
        synchronize=synchronize,
    )
    num_keys = {"mfu": setting.seq_len, "mfu_documents": float(batch.position_ids.mean()) + 1}
    sides: dict[str, dict[str, float | None]] = {}
    for name, seconds_per_step in median_seconds(seconds).items():
        tokens_per_second = setting.num_tokens / seconds_per_step
        sides[name] = {"tokens_per_second": round(tokens_per_second, 1), "peak_memory_bytes": peaks[name]}
        peak = peak_flops(setting.device, setting.dtype_of(name))
        for metric, keys in num_keys.items():
            flops = flops_per_token(setting.shape, keys)
            sides[name][metric] = round(tokens_per_second * flops / peak, 4)
    if host_waits:
        sides["ours"]["host_waits"] = host_waits[-1]
    config = {name: value for name, value in vars(arguments).items() if name != "side"}
    print(format_result("train_step", sides, describe_machine(device=arguments.device), setting=config))


if __name__ == "__main__":
    main()
