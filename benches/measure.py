"""What every program in `benches/` shares: sides run in turns, memory of a process, the last line.

A side is one way of doing the work, "ours" or a peer's. Sides take turns, round by round, so that
a busy spell of the machine falls on all of them; what is told is the median of the rounds.
"""

from __future__ import annotations

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
"""The name of our side; all others are peers."""


def interleaved(
    sides: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds that each call of each side took: one call a side and round.

    Args:
        sides: the work to time, by name.
        rounds: calls that are timed, of each side.
        warmups: calls before that, of each side, that are not.
        clock: tells the time in seconds.
        settle: waits until the work is really done, such as `torch.cuda.synchronize`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warmups, rounds):
        for name, work in sides.items():
            settle()
            started = clock()
            work()
            settle()
            if number >= 0:
                seconds[name].append(clock() - started)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The middle of each side's seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory_bytes(command: Sequence[str], **settings: str) -> int:
    """The most memory that a child process held at a time, on the machine's side (not the GPU's).

    Args:
        command: the program and its arguments; it must end well.
        settings: environment variables that the child sees beside ours.
    """
    # A child's peak begins at that of the process that started it: so a small one starts it.
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


def machine(threads: int | None = None, device: str = "cpu") -> str:
    """The machine in one line: cores in use, processor, memory, GPU, torch."""
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


def result_line(
    bench: str, sides: Mapping[str, Mapping[str, float | None]], machine_line: str, **more: Any
) -> str:
    """The JSON object that every bench prints as its last line.

    `ratio` has ours / peer for each measure that both have.

    Args:
        bench: the program's name.
        sides: measures by side; one side is OURS.
        machine_line: what `machine` gave.
        more: anything else worth keeping, such as the sizes measured.
    """
    peers = {name: dict(measures) for name, measures in sides.items() if name != OURS}
    ours = dict(sides[OURS])
    ratio = {
        name: {
            measure: round(mine / value, 4)
            for measure, value in measures.items()
            if value and (mine := ours.get(measure)) is not None
        }
        for name, measures in peers.items()
    }
    return json.dumps(
        {"bench": bench, "ours": ours, "peers": peers, "ratio": ratio, "machine": machine_line}
        | more
    )
