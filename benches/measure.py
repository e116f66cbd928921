"""Shared code of the benchmarks: interleaved timing, peak memory of a process, the result line.

A side is one implementation of the work: "ours" or a peer's. The sides run interleaved, round by
round, so that load on the machine affects all of them; the result is the median over the rounds.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "ours"
"""The side of calumma; all other sides are peers."""


def time_interleaved(
    sides: Mapping[str, Callable[[], Any]],
    *,
    num_rounds: int,
    num_warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time the sides, one call per side and round, and return the seconds of each call.

    Args:
        sides: the work to time, by side.
        rounds: timed calls of each side.
        warmups: untimed calls of each side before them.
        clock: returns the time in seconds.
        settle: waits for the device, such as `torch.cuda.synchronize`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-num_warmups, num_rounds):
        for name, work in sides.items():
            synchronize()
            started = clock()
            work()
            synchronize()
            if number >= 0:
                seconds[name].append(clock() - started)
    return seconds


def median_seconds(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median seconds of each side."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def child_peak_memory_bytes(command: Sequence[str], **settings: str) -> int:
    """Return the peak host memory (RSS) of a child process in bytes.

    Args:
        command: the program and its arguments; it must exit with status 0.
        settings: additional environment variables of the child.
    """
    # A child inherits the peak of the process that forks it, so a small process forks it.
    done = subprocess.run(
        [sys.executable, "-S", "-c", _STARTER, *command],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        check=False,
    )
    status, peak = (int(word) for word in done.stdout.split())
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {status}")
    # Linux counts in kilobytes, macOS in bytes.
    return peak * (1 if sys.platform == "darwin" else 1024)


_STARTER = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def describe_machine(threads: int | None = None, device: str = "cpu") -> str:
    """Describe the machine in one line: cores in use, processor, memory, GPU, torch."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = [f"{cores} cores of {_processor()}", f"{_memory_gib():.0f} GiB"]
    words.append(f"{threads or torch.get_num_threads()} threads")
    if device.startswith("cuda"):
        words.append(torch.cuda.get_device_name(device))
    return ", ".join([*words, f"torch {torch.__version__}"])


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    text = listed.read_text() if listed.exists() else ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    widest = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in text]
    return f"{name} ({widest[0]})" if widest else name


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def format_result(bench: str, sides: Mapping[str, Mapping[str, float | None]], machine_line: str, **more: Any) -> str:
    """Return the JSON object that every benchmark prints as its last line.

    `ratio` is ours / peer for each measure that both have.

    Args:
        bench: the name of the program.
        sides: measures by side, including OURS.
        machine_line: the result of `describe_machine`.
        more: further entries, such as the sizes measured.
    """
    peers = {name: dict(measures) for name, measures in sides.items() if name != OURS}
    ours = dict(sides[OURS])
    ratio = {
        name: {
            measure: round(own / value, 4)
            for measure, value in measures.items()
            if value and (own := ours.get(measure)) is not None
        }
        for name, measures in peers.items()
    }
    return json.dumps({"bench": bench, "ours": ours, "peers": peers, "ratio": ratio, "machine": machine_line} | more)
