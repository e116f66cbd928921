"""Kill a pre-training with SIGKILL at ten random moments, and see whether anybody could tell.

    python studies/stability/kill.py --out out/kill

Every second kill waits until a checkpoint is being written. The run is begun again by the same
command each time; at the end metrics, weights and model folders are compared with those of a run
that was left alone, byte for byte. One JSON object is the last line. `--quick` kills twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from study import build_study_shards

from calumma.checkpoints.training_checkpoint import saved_steps
from calumma.files import make_folder, sha256

CONFIG = """
shards = "{data}/shards"
tokenizers = "{data}/tokenizers"
steps = {steps}

[checkpoint]
interval = 2
keep_every = {kept}
async_save = true

[model]
model_dim = 64
num_layers = 2
num_heads = 4
num_kv_heads = 4
feed_forward_dim = 160
dropout = 0.1

[data]
seq_len = 240
global_batch_size = 4

[schedule]
warmup_steps = 5

[stage_one.weights]
objects = 0.6
shapes = 0.4

[stage_two.weights]
objects = 0.4
shapes = 0.4
pages = 0.2
"""
MACHINE_METRICS = {"step_seconds", "tokens_per_second", "data_wait_fraction", "peak_memory_bytes"}
"""What metrics tell of the machine and not of the run."""


def start_run(run: Path, config: Path) -> subprocess.Popen[str]:
    """Begin the run, or go on with it."""
    command = [sys.executable, "-m", "calumma", "pretrain", str(config), "--out", str(run)]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_success(process: subprocess.Popen[str]) -> None:
    """Wait for its end; it must be a good one."""
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"ended with {process.returncode}: {said[-2000:]}")


def kill_run(run: Path, config: Path, generator: random.Random, *, saving: bool) -> dict[str, Any]:
    """Begin, kill some time after the first step, and say what was left."""
    before = saved_steps(run)
    process = start_run(run, config)
    while process.poll() is None and saved_steps(run) == before:
        time.sleep(0.01)  # imports, and the first steps
    time.sleep(generator.uniform(0.0, 1.5))
    writing = False
    while saving and process.poll() is None and not writing:
        writing = any((run / "checkpoints").glob("*.tmp"))
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"ended with {process.returncode}: {said[-2000:]}")
    left = [path.name for path in (run / "checkpoints").glob("*.tmp")]
    return {"whole": saved_steps(run), "half": left, "over": process.returncode == 0}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """What the run's metrics tell of it."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in MACHINE_METRICS} for line in lines
    ]


def hash_weights(run: Path) -> dict[str, str]:
    """The hash of every weights file of the run's model folders."""
    return {str(p.relative_to(run)): sha256(p) for p in sorted(run.glob("model*/**/*.safetensors"))}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    kills, steps = (2, 40) if args.quick else (args.kills, 400)
    make_folder(args.out)
    build_study_shards(args.out, quick=True)
    config = args.out / "run.toml"
    config.write_text(CONFIG.format(data=args.out, steps=steps, kept=steps // 2))
    alone, run = args.out / "alone", args.out / "killed"
    for folder in (alone, run):
        shutil.rmtree(folder, ignore_errors=True)
    wait_for_success(start_run(alone, config))
    generator, deaths = random.Random(args.seed), []
    for number in range(kills):
        deaths.append(kill_run(run, config, generator, saving=number % 2 == 1))
        print(f"kill {number + 1}: {deaths[-1]}", flush=True)
    wait_for_success(start_run(run, config))
    result = {
        "kills": sum(not death["over"] for death in deaths),
        "in_a_save": sum(bool(death["half"]) for death in deaths),
        "same_metrics": read_metrics(run) == read_metrics(alone),
        "same_weights": hash_weights(run) == hash_weights(alone),
        "steps": len(read_metrics(run)),
    }
    print(json.dumps(result))
    if not (result["same_metrics"] and result["same_weights"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
