"""Test and measure on one GPU what a CPU cannot show; ten minutes on an H100.

    scripts/gpu-check                         all checks; DIR/gpu-check.json and DIR/gpu-check.md
    scripts/gpu-check --only train_step       some of them
    scripts/gpu-check --dry                   the same programs with tiny shapes on a CPU

The checks are the files of tests/gpu, and benchmarks with the shapes of the goals. Each runs in a
process of its own with a time limit, so that one that fails, hangs or fills the memory ends no
other. The status is 1 if any failed; a missed goal is no failure.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the repository, when run as a script

from benches.measure import describe_machine
from calumma.files import write_json, write_text

BUDGET_SECONDS = 600

PRELOADED = [
    "benches.encode_images",
    "benches.generate",
    "benches.telemetry",
    "benches.train_step",
    "transformers.models.chameleon.modeling_chameleon",
]
"""Modules that the server imports from which the processes of the checks are forked."""


@dataclass(frozen=True)
class Check:
    """A benchmark, or a file of tests."""

    program: str
    """File name in benches/ or tests/gpu."""

    arguments: str = ""
    """Of the benchmark on a GPU."""

    dry_arguments: str = ""
    limit_seconds: int = 120

    goals: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Names of results: "<=" or ">=", and the value."""


_TRAIN = "--size 1.5B --batch-size 8 --seq-len 4096 --documents 4 --only-ours --quick --device cuda"
_DRY_TRAIN = "--size tiny --batch-size 1 --seq-len 64 --documents 2 --only-ours --quick"
_GENERATE = "--size 7B --peers --rounds 1 --device cuda"
_DRY_GENERATE = "--size tiny --quick --small-vocabulary --codes 6 --text 6 --peers --device cpu"
_ENCODE = "--images 256 --workers 12 --only-ours --rounds 3 --device cuda"
_DRY_ENCODE = "--quick --images 2 --batch 2 --rounds 1 --only-ours --device cpu"

BENCHMARKS: dict[str, Check] = {
    "train_step": Check("train_step.py", _TRAIN, _DRY_TRAIN, 180, {"mfu": (">=", 0.45), "host_waits": ("<=", 0)}),
    "generation": Check(
        "generate.py",
        f"{_GENERATE} --jobs image images edits",
        f"{_DRY_GENERATE} --jobs image images edits",
        180,
        {
            "seconds_per_image": ("<=", 8.0),
            "images_seconds_per_image": ("<=", 1.5),
            "edits_seconds_per_image": ("<=", 1.5),
        },
    ),
    "encoder": Check("encode_images.py", _ENCODE, _DRY_ENCODE, 90),
    "encoder_bfloat16": Check(
        "encode_images.py",
        f"{_ENCODE} --precision bfloat16",
        f"{_DRY_ENCODE} --precision bfloat16",
        120,
        {"images_per_second": (">=", 270.0)},
    ),
    "save_checkpoint": Check("save_checkpoint.py", "--size 443M --seq-len 1024 --device cuda", "--steps 4"),
    "train_step_float8": Check(
        "train_step.py", f"{_TRAIN} --precision float8", f"{_DRY_TRAIN} --precision float8", 180
    ),
    "generation_fp8": Check(
        "generate.py",
        f"{_GENERATE} --jobs image --quantization fp8",
        f"{_DRY_GENERATE} --jobs image --quantization int8",
        150,
    ),
}
"""Benchmarks by name: a training step of the 1.5B decoder with its waits for the GPU; at the shape of
the 7B decoder one guided image, eight at once, and eight with an image in each prompt; images with JPEG
decoding, with the codes of a CPU and in the quick mode; steps while a checkpoint is written."""

TESTS: dict[str, Check] = {
    path.stem.removeprefix("test_"): Check(path.name) for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
}
CHECKS = TESTS | BENCHMARKS


def run_program(program: Path, arguments: Sequence[str], folder: Path) -> None:
    """Run a program, or a file of tests, in this process, a new one; output goes to files in a folder."""
    os.setsid()  # to be ended together with the processes it starts
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / stream, os.O_WRONLY | os.O_CREAT), number)
    if program.parent.parent.name == "tests":
        import pytest

        os.chdir(ROOT)
        report = folder / "tests.xml"
        # Plugins that the server has imported cannot be rewritten.
        options = ["-m", "slow or not slow", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        raise SystemExit(int(pytest.main([str(program), f"--junitxml={report}", *options])))
    sys.argv = [str(program), *arguments]
    runpy.run_path(str(program), run_name="__main__")


def run_check(name: str, dry: bool, deadline: float) -> dict[str, Any]:
    """Run a check in a process of its own, no longer than its limit; return its record."""
    check, started = CHECKS[name], time.monotonic()
    limit = min(check.limit_seconds, deadline - started)
    numbers: dict[str, float] = {}
    if limit <= 0:
        return _record(name, started, numbers, f"not run: the {BUDGET_SECONDS // 60} minutes are over", [])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        program = ROOT / ("tests/gpu" if name in TESTS else "benches") / check.program
        words = (check.dry_arguments if dry else check.arguments).split()
        process = multiprocessing.get_context("forkserver").Process(target=run_program, args=(program, words, folder))
        process.start()
        process.join(limit)
        error = None if process.exitcode is not None else f"took more than {limit:.0f} s"
        if process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
        if error is None and process.exitcode:
            lines = [*_lines(folder / "stderr"), *_lines(folder / "stdout")]
            failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            error = (failures or lines or [f"status {process.exitcode}"])[-1]
        if name in TESTS and (folder / "tests.xml").exists():
            numbers = _count_tests((folder / "tests.xml").read_text())
        elif error is None:
            result = json.loads(_lines(folder / "stdout")[-1])["ours"]
            numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return _record(name, started, numbers, error, [] if dry else missed_goals(check, numbers))


def _record(
    name: str, started: float, numbers: dict[str, float], error: str | None, missed: list[str]
) -> dict[str, Any]:
    seconds = round(time.monotonic() - started, 1)
    result = {"check": name, "ok": error is None, "seconds": seconds, "numbers": numbers}
    return result | {"goals_missed": missed, "error": error}


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []


def _count_tests(report: str) -> dict[str, float]:
    """Return the numbers of tests of a JUnit report that passed, failed, and were skipped."""
    from xml.etree import ElementTree

    [suite] = ElementTree.fromstring(report).iter("testsuite")
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    return {"passed": total - skipped - failed, "failed": failed, "skipped": skipped}


def missed_goals(check: Check, numbers: dict[str, float]) -> list[str]:
    """Return the goals of a check that its results miss, such as "mfu >= 0.45"."""
    return [
        f"{metric} {sign} {goal:g}"
        for metric, (sign, goal) in check.goals.items()
        if metric in numbers and (numbers[metric] < goal if sign == ">=" else numbers[metric] > goal)
    ]


def markdown_table(records: Sequence[dict[str, Any]], machine: str) -> str:
    """Return the records as a table for the documentation."""
    lines = [f"Measured by `scripts/gpu-check`: {machine}.", "", "| check | result | goals missed | seconds |"]
    lines.append("|---|---|---|---|")
    for record in records:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in record["numbers"].items())
        result = numbers or "ok" if record["ok"] else f"**failed**: {record['error']}"
        missed = ", ".join(record["goals_missed"]) or "none"
        lines.append(f"| {record['check']} | {result} | {missed} | {record['seconds']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the checks and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=[*CHECKS])
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU; expected one. Use --dry to try the programs on a CPU.")
    multiprocessing.set_forkserver_preload(PRELOADED)
    check = partial(run_check, dry=arguments.dry, deadline=time.monotonic() + BUDGET_SECONDS)
    records = []
    with ThreadPoolExecutor(2 if arguments.dry else 1) as pool:  # a GPU is not shared
        for record in pool.map(check, arguments.only):
            records.append(record)
            missed = "".join(f", missed {goal}" for goal in record["goals_missed"])
            print(f"{record['check']:<18} {record['error'] or 'ok'}{missed}  {record['seconds']} s", flush=True)
    machine = describe_machine(device="cpu" if arguments.dry else "cuda")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "gpu-check.json", {"machine": machine, "dry": arguments.dry, "checks": records})
    write_text(arguments.out / "gpu-check.md", markdown_table(records, machine))
    sys.exit(any(not record["ok"] for record in records))


if __name__ == "__main__":
    main()
