"""Pre-train as a rank of torchrun that dies once; see test_restart.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import torch

from tests.train import decoder_ranks

DIES_AT = 4


def killed(run: Path) -> Path:
    """Where the rank that dies says so."""
    return run.with_name("killed")


def take_up(run: Path, shards: Path) -> None:
    """The first attempt ends in a SIGKILL of one rank, whose sockets then close."""
    torch.set_num_threads(1)
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]

    def progress(step: int, seen: Mapping[str, float]) -> None:
        if attempt == "0" and step == DIES_AT and os.environ["RANK"] == "1":
            killed(run).write_text(f"attempt {attempt}")
            os.kill(os.getpid(), signal.SIGKILL)

    decoder_ranks.take_up(run, shards, progress)
