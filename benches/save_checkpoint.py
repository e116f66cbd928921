"""Measure what saving a checkpoint costs the steps of a training run.

    python benches/save_checkpoint.py                              a tiny decoder on a CPU
    python benches/save_checkpoint.py --size 443M --device cuda

A run of `calumma pretrain` on the embedded corpus saves in the middle and at its end. On a GPU
training continues meanwhile. `slowest_step_seconds` is that of the steps after the first save.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository, when run as a script

from benches.measure import OURS, describe_machine, format_result
from benches.telemetry import embedded_shards
from calumma.batches.loader import DataConfig
from calumma.train.config import CheckpointConfig, DecoderShapeConfig, PretrainConfig, ScheduleConfig
from calumma.train.pretraining import pretrain
from calumma.train.run_log import read_metrics


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", help="a preset such as 443M")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=40, help="an even number")
    parser.add_argument("--seq-len", type=int, default=128)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measures = measure(arguments, Path(name))
    machine = describe_machine(device=arguments.device)
    print(format_result("save_checkpoint", {OURS: measures}, machine, setting=vars(arguments)))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train in a folder; return seconds of the steps and the size of a checkpoint."""
    shards = embedded_shards(folder / "shards", 120)
    middle = arguments.steps // 2
    config = PretrainConfig(
        shards=shards,
        tokenizers=shards,
        steps=arguments.steps,
        device=arguments.device,
        model=DecoderShapeConfig(**DecoderShapeConfig.size(arguments.size)),
        data=DataConfig(seq_len=arguments.seq_len, global_batch_size=4),
        schedule=ScheduleConfig(warmup_steps=2),
        checkpoint=CheckpointConfig(interval=middle),
    )
    pretrain(config, folder / "run")
    seconds = [float(metrics["step_seconds"] or 0.0) for metrics in read_metrics(folder / "run")]
    [newest, *_] = sorted((folder / "run" / "checkpoints").iterdir(), reverse=True)
    return {
        "seconds_per_step": statistics.median(seconds[middle // 2 : middle]),
        "slowest_step_seconds": max(seconds[middle:]),
        "checkpoint_bytes": float(sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())),
    }


if __name__ == "__main__":
    main()
