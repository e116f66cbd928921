"""Pre-train as a rank of torchrun that dies once; see test_restart.py.

torchrun ... -m tests.train.restarting RUN SHARDS PARALLEL    the last rank is killed once
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calumma.train.pretrain import pretrain
from tests.train.decoder_ranks import run_config

DIES_AT = 4


def main() -> None:
    """The first attempt ends in a SIGKILL of one rank, whose sockets then close."""
    torch.set_num_threads(1)
    run, shards, parallel = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

    def progress(step: int, seen: Mapping[str, Any]) -> None:
        if first_attempt and step == DIES_AT and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    decoder = pretrain(run_config(shards, parallel), run, progress)
    if decoder is not None:
        torch.save(decoder.state_dict(), run / "weights.pt")


if __name__ == "__main__":
    main()
