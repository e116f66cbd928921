"""Kill a pre-training run ten times and compare it with an undisturbed run.

    python studies/stability/kill.py --out out/kill

The kills are SIGKILL at random moments; every second one waits until a checkpoint is being written.
The same command resumes the run each time. At the end metrics, weights and model folders are
compared byte for byte with those of an undisturbed run. The last line is one JSON object. `--quick`
kills twice.
"""

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
keep_every = {keep_every}
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
"""Metrics that depend on the machine."""


def start_run(run: Path, config: Path) -> subprocess.Popen[str]:
    """Start or resume the run."""
    command = [sys.executable, "-m", "calumma", "pretrain", str(config), "--out", str(run)]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_success(process: subprocess.Popen[str]) -> None:
    """Wait for the process and require exit status 0."""
    _, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(f"ended with {process.returncode}: {stderr[-2000:]}")


def kill_run(run: Path, config: Path, generator: random.Random, *, saving: bool) -> dict[str, Any]:
    """Start the run, kill it after a step, and return the state of its checkpoints."""
    before = saved_steps(run)
    process = start_run(run, config)
    while process.poll() is None and saved_steps(run) == before:
        time.sleep(0.01)  # imports, and the first steps
    time.sleep(generator.uniform(0.0, 1.5))
    writing = False
    while saving and process.poll() is None and not writing:
        writing = any((run / "checkpoints").glob("*.tmp"))
    process.send_signal(signal.SIGKILL)
    _, stderr = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"ended with {process.returncode}: {stderr[-2000:]}")
    left = [path.name for path in (run / "checkpoints").glob("*.tmp")]
    return {"complete": saved_steps(run), "partial": left, "finished": process.returncode == 0}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the metrics of a run, without those of the machine."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MACHINE_METRICS} for line in lines]


def hash_weights(run: Path) -> dict[str, str]:
    """Return the hash of every weight file in the run's model folders."""
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
    config.write_text(CONFIG.format(data=args.out, steps=steps, keep_every=steps // 2))
    undisturbed, run = args.out / "undisturbed", args.out / "killed"
    for folder in (undisturbed, run):
        shutil.rmtree(folder, ignore_errors=True)
    wait_for_success(start_run(undisturbed, config))
    generator, kills_done = random.Random(args.seed), []
    for number in range(kills):
        kills_done.append(kill_run(run, config, generator, saving=number % 2 == 1))
        print(f"kill {number + 1}: {kills_done[-1]}", flush=True)
    wait_for_success(start_run(run, config))
    result = {
        "kills": sum(not kill["finished"] for kill in kills_done),
        "kills_during_a_save": sum(bool(kill["partial"]) for kill in kills_done),
        "same_metrics": read_metrics(run) == read_metrics(undisturbed),
        "same_weights": hash_weights(run) == hash_weights(undisturbed),
        "steps": len(read_metrics(run)),
    }
    print(json.dumps(result))
    if not (result["same_metrics"] and result["same_weights"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
