"""Pace of the demo's training while other programs run, with OpenMP's waiting threads set in several ways.

    python benches/busy_machine.py                                    five minutes on a quiet machine
    python benches/busy_machine.py --quick --sides ours one-thread    one short round of two sides

A program that computes without end runs with the training: niced, or with the training's own
priority. Sides are a run that starts under this load ("ours": it leaves CPUs to other programs),
one that has all threads, as a run that started before, with `calumma`'s setting of waiting threads
or with OpenMP's default, threads that never spin ("passive"), and one thread. Each is a process
that trains the demo's decoder on random batches of its size, and sleeps while the others are
measured. `niced_share` and `plain_share` are fractions of the side's own pace on the quiet machine,
and `niced_threads`, `plain_threads` and `quiet_threads` the numbers of threads.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds the other modules too

from benches.measure import OURS, describe_machine, format_result
from calumma.runtime import OPENMP_SPIN_COUNT, num_busy_cpus

LOADS: dict[str, tuple[str, ...] | None] = {"quiet": None, "niced": ("nice", "-n", "10"), "plain": ()}
"""Prefix of the competing program's command; None for no program."""

_SPINNING = {"GOMP_SPINCOUNT": str(OPENMP_SPIN_COUNT)}
SETTINGS: dict[str, dict[str, str]] = {
    OURS: _SPINNING,
    "all-threads": _SPINNING,
    "openmp-default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one-thread": {"OMP_NUM_THREADS": "1"},
}
"""Environment variables of each side."""

_VARIABLES = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"}


class Worker:
    """A process that trains when it is asked to."""

    def __init__(self, settings: dict[str, str], seconds: float, *, leaves_cpus: bool) -> None:
        """Start it and wait until it has trained a few steps."""
        inherited = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(seconds), *["--leaves-cpus"] * leaves_cpus],
            env=inherited | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def measure(self) -> tuple[float, int]:
        """Return tokens per second over the next seconds, and the number of threads."""
        assert self.process.stdin is not None
        self.process.stdin.write("train\n")
        self.process.stdin.flush()
        pace, threads = self._read().split()
        return float(pace), int(threads)

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with {self.process.wait()}")
        return line

    def stop(self) -> None:
        """End the process."""
        self.process.communicate()


def train_on_request(seconds: float, *, leaves_cpus: bool) -> None:
    """Train for some seconds at every line of the input, and print tokens per second and threads."""
    import torch

    from benches.train_step import BenchSetting, calumma_step, random_batch
    from calumma.demo.config import load_demo_config
    from calumma.model.config import DecoderConfig
    from calumma.train.numerics import Numerics, restored_num_threads

    config = load_demo_config().pretrain_config(Path())
    shape = DecoderConfig(vocabulary_size=1544, **vars(config.model))
    setting = BenchSetting(
        shape=shape,
        batch_size=config.data.global_batch_size,
        seq_len=config.data.seq_len,
        documents_per_row=3,
        device=torch.device("cpu"),
        compute=config.compute,
        optimizer=config.optimizer,
    )
    step = calumma_step(setting, random_batch(setting), [])
    for _ in range(3):
        step()
    print("ready", flush=True)
    numerics = Numerics(Path(), config.compute.precision, has_threads=True)
    for _ in sys.stdin:
        with restored_num_threads():
            numerics.start(num_busy_cpus if leaves_cpus else None)
            count, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < seconds:
                step()
                count += 1
            print(count * setting.num_tokens / elapsed, torch.get_num_threads(), flush=True)


@contextmanager
def competing_program(prefix: Sequence[str] | None) -> Iterator[None]:
    """Run a program that never ends or waits while the block runs."""
    if prefix is None:
        yield
        return
    process = subprocess.Popen([*prefix, sys.executable, "-S", "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(sides: Sequence[str], rounds: int, seconds: float) -> dict[str, dict[str, float | None]]:
    """Return the measures of each side: medians over interleaved rounds."""
    found: dict[str, dict[str, list[tuple[float, int]]]] = {name: {load: [] for load in LOADS} for name in sides}
    with ExitStack() as stack:
        workers = {}
        for name in sides:
            workers[name] = Worker(SETTINGS[name], seconds, leaves_cpus=name == OURS)
            stack.callback(workers[name].stop)
        for _ in range(rounds):
            for load, prefix in LOADS.items():
                for name, worker in workers.items():
                    with competing_program(prefix):
                        found[name][load].append(worker.measure())
                    pace, threads = found[name][load][-1]
                    line = f"{load:>6} {name:>15} {pace:9.1f} tokens/s, threads: {threads}"
                    print(line, file=sys.stderr, flush=True)
    return {name: _measures(found[name]) for name in found}


def _measures(found: dict[str, list[tuple[float, int]]]) -> dict[str, float | None]:
    paces = {load: median(pace for pace, _ in pairs) for load, pairs in found.items()}
    measures: dict[str, float | None] = {f"{load}_tokens_per_second": round(pace, 1) for load, pace in paces.items()}
    measures |= {f"{load}_threads": median(threads for _, threads in pairs) for load, pairs in found.items()}
    for load in paces.keys() - {"quiet"}:
        measures[f"{load}_share"] = round(paces[load] / paces["quiet"], 3)
    return dict(sorted(measures.items()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of one second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--sides", choices=list(SETTINGS), nargs="+", default=list(SETTINGS))
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--leaves-cpus", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        train_on_request(arguments.worker, leaves_cpus=arguments.leaves_cpus)
        return
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1.0
    sides = measure(arguments.sides, arguments.rounds, arguments.seconds)
    setting: dict[str, Any] = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    print(format_result("busy_machine", sides, describe_machine(), setting=setting))


if __name__ == "__main__":
    main()
