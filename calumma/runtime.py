"""Device, dtype, seeds, and the wish to stop: the only reader of the environment."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from calumma.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def cache_folder() -> str:
    """Where fetched packages are kept: $CALUMMA_CACHE, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return os.environ.get("CALUMMA_CACHE") or str(Path(home) / "calumma")


def keys_in_environment() -> str:
    """The keys of a server's clients in $CALUMMA_KEYS, as lines of a file of keys; or nothing."""
    return os.environ.get("CALUMMA_KEYS", "")


def ray_address() -> str:
    """The Ray cluster that $RAY_ADDRESS names; or nothing."""
    return os.environ.get("RAY_ADDRESS", "")


@dataclass(frozen=True)
class Launch:
    """What torchrun tells a process about itself."""

    rank: int
    size: int
    local_rank: int

    attempt: int = 0
    """How often torchrun has begun again."""


def launched() -> Launch | None:
    """The place that torchrun gave this process, or None where it was started alone."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    rank = int(os.environ["RANK"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    return Launch(rank, int(os.environ["WORLD_SIZE"]), local_rank, attempt)


def is_first_rank() -> bool:
    """Whether this process is the one of its run that tells and writes."""
    launch = launched()
    return launch is None or launch.rank == 0


def speak_on_loopback() -> None:
    """Have ranks of one machine speak where no other machine can hear or reach them.

    Gloo and NCCL read the interface's name from the environment; one that is named there stays.
    """
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if names:
            os.environ.setdefault(variable, names[0])


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known; expected auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r} is not there: this torch sees no GPU. Use --device cpu."
        )
    return device


def most_memory(device: torch.device) -> int:
    """The most bytes this process has held so far: on a GPU as torch counts, else in all."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in kilobytes, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def choose_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`.

    Raises:
        ConfigError: it is none of float32, bfloat16, float16.
    """
    import torch

    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not known; expected one of {', '.join(DTYPES)}.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def be_deterministic() -> None:
    """Ask torch for the same bits every time, at some cost in speed on a GPU."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)


class StopRequest:
    """Remembers Ctrl-C and SIGTERM, so that work stops where it can be taken up again.

    Long loops call `check` between two steps, after they have saved what is done.
    """

    def __init__(self) -> None:
        self.wanted = False

    def install(self) -> None:
        """Listen to SIGINT and SIGTERM; a second signal ends the process at once."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            os._exit(3)
        self.wanted = True

    def check(self, saved: str) -> None:
        """Raise `Interrupted`, naming what is saved, if a stop is expected."""
        if self.wanted:
            raise Interrupted(f"stopped by a signal; {saved}. The same command goes on from there.")


STOP = StopRequest()
"""The process's one stop request; the command line installs it."""
