"""Runs that are killed, and their logs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from calumma.model.decoder import Decoder
from calumma.train.training_loop import TrainCallbacks


class KilledError(Exception):
    """Stands for SIGKILL."""


def dies_after(steps: int) -> TrainCallbacks:
    """Return callbacks that end the run after a step."""

    def on_step(step: int, metrics: Mapping[str, Any]) -> None:
        if step == steps:
            raise KilledError

    return TrainCallbacks(on_step=on_step)


def records_steps(steps: list[int]) -> TrainCallbacks:
    """Return callbacks that collect the step a run starts at, and each step it does."""
    return TrainCallbacks(steps.append, lambda step, metrics: steps.append(step))


def assert_same_weights(one: Decoder | None, other: Decoder | None) -> None:
    """Compare the weights of two decoders bit by bit."""
    assert one is not None and other is not None
    expected = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def logged_metrics(run: Path) -> list[dict[str, float]]:
    """Return the lines of `metrics.jsonl` without times and memory."""
    machine = {"step_seconds", "tokens_per_second", "data_wait_fraction", "peak_memory_bytes", "mfu", "mfu_documents"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in machine} for line in lines]


def logged_events(run: Path) -> list[dict[str, Any]]:
    """Return the lines of `events.jsonl`."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def assert_same_metrics(ours: Path, expected: Path) -> None:
    """Compare the metrics of two runs to 1e-5, and update ratios to 5 %.

    Update ratios are estimates from other elements where a tensor is sharded otherwise.
    """
    for one, other in zip(logged_metrics(ours), logged_metrics(expected), strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            relative = 0.05 if name.startswith("update_ratio_") else 0.0
            assert one[name] == pytest.approx(value, rel=relative, abs=1e-5), name
