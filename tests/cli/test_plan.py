"""`calumma plan`: a table for people, an object for machines, and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calumma.cli.main import main

RUN = Path(__file__).parents[2] / "runs" / "decoder-37M.toml"
WORDS = ["plan", str(RUN), "--gpus", "2", "--gpu", "h100-80gb", "--data.global-batch-size", "8"]


def test_the_table_is_aligned_and_says_what_was_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--price", "2.5"]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert {len(line) for line in lines if line.endswith("GiB")} == {len(lines[0])}
    assert "at 40% MFU (assumed)" in told
    assert "at $2.50 a GPU and hour" in told
    assert "h100-80gb: 2 shards x 1 tensor x 1 replica" in told


def test_machines_get_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--json", "--mfu", "0.5", "--vocabulary", "1000"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["layout"]["num_gpus"] == 2
    assert told["memory"]["needed"] > told["memory"]["total"]
    assert (told["speed"]["mfu"], told["speed"]["tokens_a_step"]) == (0.5, 8 * 4096)
    assert told["num_parameters"] == 36_965_120 - 2 * 64_536 * 256


def test_a_run_that_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--parallel.tensor-parallel", "16", "--gpus", "16"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: parallel.tensor_parallel=16 does not divide 8 key heads")
