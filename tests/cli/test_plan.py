"""Tests of `calumma plan`: table, JSON and errors."""

import json
from pathlib import Path

import pytest

from calumma.cli.main import main

RUN = Path(__file__).parents[2] / "runs" / "decoder-37M.toml"
COMMAND = ["plan", str(RUN), "--gpus", "2", "--gpu", "h100-80gb", "--data.global-batch-size", "32"]


def test_table_is_aligned_and_states_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--price", "2.5"]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert {len(line) for line in lines if line.endswith("GiB")} == {len(lines[0])}
    assert "at 40% MFU (assumed)" in output
    assert "at $2.50 per GPU hour" in output
    assert "h100-80gb: 2 shards x 1 tensor x 1 replica" in output


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--json", "--mfu", "0.5", "--vocab-size", "1000"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    plan = json.loads(line)
    assert plan["layout"]["num_gpus"] == 2
    assert plan["memory"]["required"] > plan["memory"]["total"]
    assert (plan["time"]["mfu"], plan["time"]["tokens_per_step"]) == (0.5, 32 * 4096)
    assert plan["num_parameters"] == 36_965_120 - 2 * 64_536 * 256


def test_impossible_run_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--parallel.tensor-parallel", "16", "--gpus", "16"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: parallel.tensor_parallel=16 ")
