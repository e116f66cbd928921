"""Pre-train as a rank of torchrun on two nodes, one of which dies once; see test_restart.py."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from calumma.train.training_loop import TrainCallbacks
from tests.launch import SERVER
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
        if attempt == "0" and step == DIES_AT and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            kill_marker(run).write_text(f"attempt {attempt}")
            os.kill(os.getpid(), signal.SIGKILL)

    decoder_ranks.resume(run, shards, TrainCallbacks(on_step=on_step))


def launch_node(ranks_per_node: int, port: str, run: Path, shards: Path) -> None:
    """Run ranks as one of two nodes, by torchrun's launcher, with a function as its command."""
    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=ranks_per_node,
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{port}",
        local_addr="127.0.0.1",
        run_id="restart",
        max_restarts=1,
        monitor_interval=0.1,
        start_method=SERVER.get_start_method(),
    )
    elastic_launch(config, resume)(run, shards)
