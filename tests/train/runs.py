"""Runs that are killed, and what is left of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from calumma.model.decoder import Decoder


class KilledError(Exception):
    """Stands for SIGKILL."""


def dies_after(steps: int) -> Any:
    """A progress that ends the run once this many steps are done."""

    def progress(step: int, seen: Mapping[str, float]) -> None:
        if step == steps and seen:
            raise KilledError

    return progress


def assert_same_weights(one: Decoder, other: Decoder) -> None:
    """Bit for bit."""
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def told(run: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, but for clocks and memory."""
    clocks = {"step_seconds", "tokens_per_second", "data_wait_fraction", "peak_memory_bytes", "mfu"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]


def assert_same_course(ours: Path, expected: Path) -> None:
    """Ranks tell what one process told: to 1e-5. How far the weights moved is an estimate from
    other numbers where a tensor lies in other parts: to 5 %."""
    for one, other in zip(told(ours), told(expected), strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            estimate = name.startswith("update_ratio_")
            near = {"rel": 0.05} if estimate else {"abs": 1e-5}
            assert one[name] == pytest.approx(value, **near), name
