"""Devices, dtypes, busy CPUs, torchrun ranks and stop signals; the only reader of environment variables."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from calumma.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    import torch

MODEL_DTYPES = ("float32", "bfloat16", "float16")

DEVICES_WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that compute in at most 32 bits."""

OPENMP_SPIN_COUNT = 1000
"""Spins of an idle OpenMP thread before it sleeps; the library's own number is 300,000 or more."""

_PROC_STAT = Path("/proc/stat")


def check_platform() -> None:
    """Check that this operating system has the POSIX modules that the commands use.

    Raises:
        ConfigError: a module is missing, as on Windows.
    """
    for name in ("fcntl", "resource"):
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"Python has no module {name!r} on {sys.platform}; expected Linux. "
                "On Windows run calumma in the Windows Subsystem for Linux (WSL)."
            ) from error


def limit_thread_spinning() -> None:
    """Let idle OpenMP threads sleep early, so that other programs do not stall every product.

    By default they spin for a long time on cores that others need. Call this before torch is
    imported; it changes no result. OMP_WAIT_POLICY and GOMP_SPINCOUNT of the user are kept.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(OPENMP_SPIN_COUNT)


def is_thread_count_set() -> bool:
    """Return whether the user has set the number of threads of torch by an environment variable."""
    return any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))


def num_busy_cpus(seconds: float = 0.25) -> int:
    """Return how many of this process's CPUs other programs keep busy, niced programs included.

    A second measurement has to confirm the first one, so a short burst does not count. Returns 0
    where there is no /proc/stat.
    """
    if not _PROC_STAT.is_file():
        return 0
    found = _measure_busy_cpus(seconds)
    return min(found, _measure_busy_cpus(seconds)) if found else 0


def _measure_busy_cpus(seconds: float) -> int:
    cpus = os.sched_getaffinity(0)
    started, own, before = time.monotonic(), time.process_time(), busy_seconds(_PROC_STAT.read_text(), cpus)
    time.sleep(seconds)
    after, own = busy_seconds(_PROC_STAT.read_text(), cpus), time.process_time() - own
    used = [now - then for then, now in zip(before, after, strict=True)]
    return count_busy_cpus(used, own, time.monotonic() - started)


def busy_seconds(stat: str, cpus: Collection[int]) -> list[float]:
    """Return the seconds since the start of the system in which each of some CPUs was not idle.

    Args:
        stat: content of /proc/stat. The time that a host takes from a virtual machine counts too.
        cpus: numbers of the CPUs.
    """
    lines = (line.split() for line in stat.splitlines())
    ticks = {words[0]: [int(word) for word in words[1:9]] for words in lines if words and words[0].startswith("cpu")}
    used = (sum(ticks[f"cpu{cpu}"]) - sum(ticks[f"cpu{cpu}"][3:5]) for cpu in sorted(cpus) if f"cpu{cpu}" in ticks)
    return [count / os.sysconf("SC_CLK_TCK") for count in used]


def count_busy_cpus(used: Sequence[float], own: float, elapsed: float) -> int:
    """Return how many CPUs other programs keep busy, rounded; a CPU that is idle for three quarters does not count.

    Args:
        used: seconds of `elapsed` in which each CPU was not idle.
        own: seconds of all CPUs that this process used.
        elapsed: seconds.

    >>> [count_busy_cpus(used, 0.0, 1.0) for used in ([1.0, 0.1], [0.4, 0.5], [0.2] * 8)]
    [1, 1, 0]
    """
    busy = sum(seconds for seconds in used if seconds > elapsed / 4) - own
    return max(0, int(busy / elapsed + 0.5))


def cache_folder() -> str:
    """Return the download cache: $CALUMMA_CACHE, else a folder in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return os.environ.get("CALUMMA_CACHE") or str(Path(home) / "calumma")


def api_keys_from_environment() -> str:
    """Return $CALUMMA_API_KEYS, in the format of an API key file; "" if it is not set."""
    return os.environ.get("CALUMMA_API_KEYS", "")


def ray_address() -> str:
    """Return $RAY_ADDRESS, the address of a Ray cluster; "" if it is not set."""
    return os.environ.get("RAY_ADDRESS", "")


@dataclass(frozen=True)
class TorchrunRank:
    """Ranks of this process from the environment variables of torchrun."""

    rank: int
    world_size: int
    local_rank: int

    restart_count: int = 0
    """How often torchrun has restarted the processes."""


def torchrun_rank() -> TorchrunRank | None:
    """Return the ranks of this process, or None if it was not started by torchrun.

    Other launchers, such as srun, need not set LOCAL_RANK.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    rank = int(os.environ["RANK"])
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    if local_rank is None:
        import torch

        local_rank = str(rank % (torch.cuda.device_count() or rank + 1))
    restart_count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    return TorchrunRank(rank, int(os.environ["WORLD_SIZE"]), int(local_rank), restart_count)


def is_first_rank() -> bool:
    """Return whether this process is rank 0, which logs and writes files."""
    launch = torchrun_rank()
    return launch is None or launch.rank == 0


def enable_flight_recorder(prefix: Path) -> None:
    """Let NCCL write its last collectives to PREFIX + rank when one times out.

    Call it before the process group is initialized; variables that are already set stay.
    `torchfrtrace` of PyTorch reads the files.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(prefix.absolute()))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def use_loopback_interface() -> None:
    """Restrict collectives between the ranks of one machine to the loopback interface.

    Gloo and NCCL read the name of the interface from environment variables; a variable that is
    already set is not changed.
    """
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if names:
            os.environ.setdefault(variable, names[0])


def prepare_for_vllm() -> None:
    """Set the environment of a vLLM that this process starts: the first of its model runners, and no forks of threads.

    Variables that are already set stay.
    """
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def resolve_device(name: str) -> "torch.device":
    """Return the device called `name`; "auto" is CUDA or MPS (Apple's GPUs) if available, else the CPU.

    Raises:
        ConfigError: the name is unknown, or the GPU does not exist.
    """
    import torch

    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda or mps.") from error
    is_missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if is_missing.get(device.type):
        raise ConfigError(f"device {name!r}: torch finds no GPU; expected cpu. Use --device cpu.")
    return device


def peak_memory_bytes(device: "torch.device") -> int:
    """Return the peak memory of this process in bytes: allocated by torch on a GPU, else RSS."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # missing on Windows

    # Linux counts in kilobytes, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def dtype_name(dtype: str, device: "torch.device") -> str:
    """Return the name of a dtype; "auto" is bfloat16 with CUDA, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.type == "cuda" else "float32"


def resolve_dtype(name: str) -> "torch.dtype":
    """Return the torch dtype called `name`.

    Raises:
        ConfigError: the name is none of float32, bfloat16, float16.
    """
    import torch

    if name not in MODEL_DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; expected one of {', '.join(MODEL_DTYPES)}.")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def sum_dtype(device: "torch.device") -> "torch.dtype":
    """Return the dtype in which a device sums numbers: float64, or float32 where it has no float64."""
    import torch

    return torch.float32 if device.type in DEVICES_WITHOUT_FLOAT64 else torch.float64


def use_deterministic_algorithms() -> None:
    """Make torch use deterministic algorithms, which are slower on a GPU."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)


class StopRequest:
    """Defers Ctrl-C and SIGTERM to a point where the work can be resumed.

    Long loops call `check` between two steps, after they have saved their state.
    """

    def __init__(self) -> None:
        self.is_requested = False

    def install(self) -> None:
        """Install handlers of SIGINT and SIGTERM; a second signal ends the process at once."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested:
            os._exit(3)
        self.is_requested = True

    def check(self, saved: str) -> None:
        """Raise `Interrupted` with a sentence on what is saved if a signal has arrived."""
        if self.is_requested:
            raise Interrupted(f"stopped by a signal; {saved}. Run the same command to resume.")


STOP = StopRequest()
"""The stop request of this process; the command line installs it."""
