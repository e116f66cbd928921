"""Pre-train as a rank of torchrun that dies once; see test_restart.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calumma.train.training_loop import TrainCallbacks
from tests.train import decoder_ranks

DIES_AT = 4


def kill_marker(run: Path) -> Path:
    """Return the file that the rank writes before it dies."""
    return run.with_name("killed")


def resume(run: Path, shards: Path) -> None:
    """Pre-train; in the first attempt one rank kills itself, which closes its sockets."""
    torch.set_num_threads(1)
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]

    def on_step(step: int, metrics: Mapping[str, Any]) -> None:
        if attempt == "0" and step == DIES_AT and os.environ["RANK"] == "1":
            kill_marker(run).write_text(f"attempt {attempt}")
            os.kill(os.getpid(), signal.SIGKILL)

    decoder_ranks.resume(run, shards, TrainCallbacks(on_step=on_step))
