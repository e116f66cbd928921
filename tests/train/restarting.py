"""Pre-train as a rank of torchrun that dies once; see test_restart.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import torch

from tests.train import decoder_ranks

DIES_AT = 4


def take_up(run: Path, shards: Path) -> None:
    """The first attempt ends in a SIGKILL of one rank, whose sockets then close."""
    torch.set_num_threads(1)
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

    def progress(step: int, seen: Mapping[str, float]) -> None:
        if first_attempt and step == DIES_AT and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    decoder_ranks.take_up(run, shards, progress)
