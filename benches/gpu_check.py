"""Check on one GPU what tests on a CPU cannot, and measure it; ten minutes on an H100.

    scripts/gpu-check                         all checks; DIR/gpu-check.json and DIR/gpu-check.md
    scripts/gpu-check --only train_step       some of them
    scripts/gpu-check --dry                   the same program with tiny shapes on a CPU

Each check is a process of its own, so that one that fails or fills the memory spoils no other. The
status is 1 if any failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository, when run as a script

from benches.measure import describe_machine
from benches.telemetry import embedded_shards
from benches.train_step import BenchSetting, build_vocabulary, random_batch
from calumma.batches.loader import DataConfig
from calumma.files import write_json, write_text
from calumma.model.attention_backends import FlexDocumentAttention, PackedDocumentAttention
from calumma.model.decoder import Decoder, LMHead
from calumma.model.presets import PRESETS
from calumma.train.compile_and_recompute import apply_recompute_and_compile
from calumma.train.config import (
    CheckpointConfig,
    ComputeConfig,
    DecoderShapeConfig,
    OptimizerConfig,
    ParallelConfig,
    PretrainConfig,
    ScheduleConfig,
)
from calumma.train.decoder_trainer import optimizer_step
from calumma.train.distributed import SINGLE_PROCESS, init_distributed
from calumma.train.float8 import to_float8
from calumma.train.loss import cross_entropy_and_z_loss
from calumma.train.optimizer import make_optimizers
from calumma.train.parallelize import parallelize_decoder
from calumma.train.pretraining import pretrain
from calumma.train.run_log import read_metrics
from calumma.train.training_loop import TrainCallbacks

BENCHES = Path(__file__).parent
TIMEOUT_SECONDS = 300

Numbers = dict[str, float]
"""Results of a check by name."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the checks: of a GPU, or tiny ones."""

    device: str = "cuda"
    train_step: str = "--size 1.5B --batch-size 8 --seq-len 4096 --documents 4"
    generate: str = "--size 7B --jobs image mixed"
    encode: str = "--images 256 --workers 8"
    rows: int = 4
    seq_len: int = 2048
    size: str = "443M"


DRY = Scale(
    device="cpu",
    train_step="--size tiny --batch-size 1 --seq-len 64 --documents 2 --quick",
    generate="--size tiny --quick --small-vocabulary --codes 6 --text 6 --jobs image",
    encode="--quick --images 2 --batch 2 --rounds 1",
    rows=2,
    seq_len=128,
    size="tiny",
)


def check_host_waits(scale: Scale) -> Numbers:
    """Count the waits for the GPU in the launch of a training step, of which PyTorch warns."""
    return _steps(scale, "bfloat16")


def check_float8(scale: Scale) -> Numbers:
    """Train in float8; on a CPU it is emulated."""
    return {"loss": _steps(scale, "float8")["loss"]}


def _steps(scale: Scale, precision: str) -> Numbers:
    """Train three steps; return the last loss and the waits that the last launch was warned of."""
    device = torch.device(scale.device)
    setting = BenchSetting(
        shape=PRESETS[scale.size],
        batch_size=scale.rows,
        seq_len=scale.seq_len,
        documents_per_row=4,
        device=device,
        compute=ComputeConfig(),
    )
    batch = random_batch(setting)
    with tempfile.TemporaryDirectory() as folder, init_distributed(device, Path(folder), groups_one_rank=True):
        decoder = Decoder(setting.shape)
        decoder.init_weights(0)
        if precision == "float8":
            to_float8(decoder, emulate=device.type == "cpu")
        decoder.to(device).train()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        layout = parallelize_decoder(decoder, SINGLE_PROCESS, ParallelConfig(), device.type, dtype)
        apply_recompute_and_compile(decoder, setting.compute)
        optimizers = make_optimizers(decoder, OptimizerConfig())
        loss, caught = 0.0, 0
        for number in range(3):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                if device.type == "cuda" and number == 2:
                    torch.cuda.set_sync_debug_mode("warn")
                launched = optimizer_step(
                    decoder,
                    optimizers,
                    [batch, batch],
                    vocabulary=build_vocabulary(setting.shape),
                    z_loss_weight=1e-5,
                    max_grad_norm=1.0,
                    layout=layout,
                )
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            caught = sum("synchroniz" in str(one.message) for one in seen)
            loss = launched.read().loss
    _require(np.isfinite(loss), f"a loss of {loss}")
    _require(caught == 0, f"{caught} waits for the GPU in a step")
    return {"loss": loss, "host_waits": float(caught)}


def check_resume(scale: Scale) -> Numbers:
    """Compare the losses of a run that is killed after step 4, and resumed, with an undisturbed one."""

    class Killed(Exception):
        pass

    def die(step: int, metrics: Mapping[str, Any]) -> None:
        if step == 4:
            raise Killed

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = embedded_shards(folder / "shards", 120)
        config = PretrainConfig(
            shards=shards,
            tokenizers=shards,
            steps=6,
            device=scale.device,
            model=DecoderShapeConfig(model_dim=64, num_layers=2, num_heads=2, num_kv_heads=2, feed_forward_dim=128),
            data=DataConfig(seq_len=128, global_batch_size=4),
            schedule=ScheduleConfig(warmup_steps=2),
            checkpoint=CheckpointConfig(interval=2, async_save=True),
        )
        pretrain(config, folder / "expected", None)
        try:
            pretrain(config, folder / "run", TrainCallbacks(on_step=die))
        except Killed:
            pretrain(config, folder / "run")
        made, expected = ([m["loss"] or 0.0 for m in read_metrics(folder / run)] for run in ("run", "expected"))
    difference = max(abs(one - other) for one, other in zip(made, expected, strict=True))
    _require(difference < 1e-3, f"losses that differ by {difference:.1e}")
    return {"loss_difference": difference}


def check_loss(scale: Scale) -> Numbers:
    """Compare loss and gradients of a GPU's code with a CPU's, float32."""
    vocabulary = build_vocabulary(replace(PRESETS["tiny"], vocabulary_size=2048))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, scale.seq_len, 64, generator=generator)
    labels = torch.randint(vocabulary.size, hidden.shape[:2], generator=generator)
    mask = torch.rand(hidden.shape[:2], generator=generator) < 0.7
    weight = torch.randn(vocabulary.size, 64, generator=generator) * 0.05

    def gradients(device: str, static_shapes: bool) -> list[torch.Tensor]:
        head = LMHead(64, vocabulary.size, bias=False, device=device)
        with torch.no_grad():
            head.weight.copy_(weight)
        x = hidden.to(device).requires_grad_()
        sums = cross_entropy_and_z_loss(
            x, head, labels.to(device), mask.to(device), vocabulary, z_loss_weight=1e-5, static_shapes=static_shapes
        )
        sums.total.backward()
        assert x.grad is not None and head.weight.grad is not None
        return [sums.total.detach().cpu() / mask.sum(), x.grad.cpu(), head.weight.grad.cpu()]

    return _compare(gradients(scale.device, True), gradients("cpu", False), 1e-3)


def check_attention(scale: Scale) -> Numbers:
    """Compare FlexAttention within documents with a CPU's attention, float32, with gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, scale.seq_len, heads, 64) for heads in (4, 2, 2)]
    qkv = [torch.randn(shape, generator=generator) for shape in shapes]
    ids = (torch.rand(2, scale.seq_len, generator=generator) < 0.01).cumsum(1)

    def run(device: str, attention: Any) -> list[torch.Tensor]:
        on_gpu = device == "cuda"  # a CPU's FlexAttention has no backward pass
        inputs = [x.to(device, copy=True).requires_grad_(on_gpu or attention is packed) for x in qkv]
        mixed = attention(*inputs)
        if scale.device == "cuda":
            mixed.square().sum().backward()
        return [mixed.detach().cpu(), *(x.grad.cpu() for x in inputs if x.grad is not None)]

    packed = PackedDocumentAttention.build(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of FlexAttention that is not compiled
        flex = run(scale.device, FlexDocumentAttention.build(ids.to(scale.device), ids))
    return _compare(flex, run("cpu", packed), 1e-2)


def _compare(made: list[torch.Tensor], expected: list[torch.Tensor], limit: float) -> Numbers:
    difference = max(float((a - b).abs().max() / (b.abs().max() + 1e-9)) for a, b in zip(made, expected, strict=True))
    _require(difference < limit, f"a relative difference of {difference:.1e}, above {limit:.0e}")
    return {"relative_difference": difference}


def _require(holds: bool, found: str) -> None:
    if not holds:
        raise RuntimeError(found)


CHECKS: dict[str, Callable[[Scale], Numbers]] = {
    "resume": check_resume,
    "loss": check_loss,
    "attention": check_attention,
    "host_waits": check_host_waits,
    "float8": check_float8,
}

BENCHMARKS: dict[str, Callable[[Scale], tuple[str, str]]] = {
    "train_step": lambda scale: ("train_step.py", f"{scale.train_step} --only-ours"),
    "generation": lambda scale: ("generate.py", scale.generate),
    "encoder": lambda scale: ("encode_images.py", scale.encode),
}
"""File and options of the benchmarks: a training step; one guided image alone, and eight requests with
and without images in the prompt; the image tokenizer with JPEG decoding."""


def run_check(name: str, dry: bool) -> dict[str, Any]:
    """Run a check in a process of its own; return its record."""
    scale = DRY if dry else Scale()
    started, numbers, error = time.perf_counter(), {}, None
    try:
        if name in BENCHMARKS:
            file, words = BENCHMARKS[name](scale)
            numbers = _last_line(BENCHES / file, *words.split(), "--device", scale.device)["ours"]
        else:
            numbers = _last_line(Path(__file__), "--inside", name, *(["--dry"] if dry else []))
    except (RuntimeError, subprocess.TimeoutExpired) as failure:
        error = str(failure)
    numbers = {metric: value for metric, value in numbers.items() if isinstance(value, int | float)}
    seconds = round(time.perf_counter() - started, 1)
    return {"check": name, "ok": error is None, "seconds": seconds, "numbers": numbers, "error": error}


def _last_line(*command: Path | str) -> dict[str, Any]:
    """Run a program in Python; return the last line of its output, a JSON object."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def markdown_table(records: list[dict[str, Any]], machine: Any) -> str:
    """Return the records as a table of docs/performance.md."""
    lines = [f"Measured by `scripts/gpu-check`: {machine}.", "", "| check | result | seconds |", "|---|---|---|"]
    for record in records:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in record["numbers"].items())
        result = numbers or "ok" if record["ok"] else f"**failed**: {record['error']}"
        lines.append(f"| {record['check']} | {result} | {record['seconds']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the checks and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--only", nargs="+", choices=[*CHECKS, *BENCHMARKS], default=[*CHECKS, *BENCHMARKS])
    parser.add_argument("--inside", choices=CHECKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    scale = DRY if arguments.dry else Scale()
    if arguments.inside:
        print(json.dumps(CHECKS[arguments.inside](scale)))
        return
    if not arguments.dry and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU; expected one. Use --dry to try the program on a CPU.")
    records = []
    with ThreadPoolExecutor(2 if arguments.dry else 1) as pool:  # a GPU is not shared
        for record in pool.map(partial(run_check, dry=arguments.dry), arguments.only):
            records.append(record)
            print(f"{record['check']:<12} {record['error'] or 'ok'}  {record['seconds']} s", flush=True)
    machine = describe_machine(device=scale.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "gpu-check.json", {"machine": machine, "scale": asdict(scale), "checks": records})
    write_text(arguments.out / "gpu-check.md", markdown_table(records, machine))
    sys.exit(any(not record["ok"] for record in records))


if __name__ == "__main__":
    main()
