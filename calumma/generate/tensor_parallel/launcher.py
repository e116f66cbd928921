"""The processes of one machine that hold a decoder together: started, told, watched, ended.

This process leads; the others live in `follower.py`, as its children. Where one of them ends or
hangs, the group ends as a whole: no rank has a use without the others.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import re
import signal
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
import torch.distributed

from calumma.checkpoints.model_folder import ModelParts, load_image_tokenizer, open_model_folder
from calumma.errors import GenerationError, RankError
from calumma.generate.params import EngineConfig
from calumma.generate.tensor_parallel.shard import read_sharded_decoder, require_divisible
from calumma.generate.tensor_parallel.worker import (
    StepCommand,
    WorkerConfig,
    init_process_group,
    worker_main,
)
from calumma.runtime import choose_device, choose_dtype
from calumma.tokens.folder import Tokenizers

STEP_TIMEOUT_SECONDS = 60.0
"""For how long a rank waits for the others in the middle of a step, before it takes them to hang.
It is far more than two ranks are ever apart, as all of them do the same."""

SPAWN_CONTEXT = multiprocessing.get_context("spawn")
"""How processes are started: afresh, as CUDA wants it."""

_JOIN_TIMEOUT_SECONDS = 10.0
"""For how long a follower that was told to end may go on."""


class WorkerGroup:
    """The processes that hold a decoder together, seen from the leader's. One a process."""

    def __init__(
        self,
        folder: Path,
        tp_size: int,
        *,
        device: str = "auto",
        dtype: str = "float32",
        timeout_seconds: float = STEP_TIMEOUT_SECONDS,
    ) -> None:
        """Start the followers, and read the model along with them.

        Args:
            folder: a model folder.
            size: ranks, this process counted.
            device: auto, cpu, or cuda: as many GPUs as ranks.
            dtype: of the decoder.
            seconds: for how long a rank waits for the others in the middle of a step.

        Raises:
            CheckpointError: the folder holds no such model.
            ConfigError: there is no such device or dtype.
            GenerationError: so many ranks cannot share its decoder, or lack GPUs; or this process
                is in a group already.
            RankError: a follower has ended.
        """
        self.tp_size = tp_size
        self.error: RankError | None = None
        """Why the group has ended, if something went wrong."""

        self._stored = open_model_folder(folder)
        require_divisible(self._stored.decoder_config, tp_size)
        if torch.distributed.is_initialized():
            raise GenerationError(
                f"this process is in a group of {torch.distributed.get_world_size()} ranks; expected "
                "one that is in none. Close the model that they share, or start another process."
            )
        self._device = device_kind(device, tp_size)
        choose_dtype(dtype)
        self._lock = threading.RLock()
        self._closing = False
        self._listeners: list[Callable[[RankError], None]] = []
        self._threads = torch.get_num_threads()
        self._has_engine = False
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._rendezvous_folder = tempfile.TemporaryDirectory(prefix="calumma-")
        atexit.register(self._kill)
        try:
            self._start(folder, dtype, timeout_seconds)
        except BaseException:
            self._kill()
            self.close()
            raise
        threading.Thread(target=self._wait_for_exit, name="calumma-ranks", daemon=True).start()

    def _start(self, folder: Path, dtype: str, seconds: float) -> None:
        for rank in range(1, self.tp_size):
            ours, theirs = SPAWN_CONTEXT.Pipe()
            process = SPAWN_CONTEXT.Process(
                target=worker_main, args=(theirs,), name=f"calumma-rank-{rank}"
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        # Only when all are here: who joins first waits for the last, but not for its imports.
        self._wait_for_workers()
        places = [
            WorkerConfig(
                rank=rank,
                world_size=self.tp_size,
                folder=folder.resolve(),
                device=self._device,
                dtype=dtype,
                rendezvous_file=Path(self._rendezvous_folder.name) / "ranks",
                num_threads=max(1, self._threads // self.tp_size),
                timeout_seconds=seconds,
            )
            for rank in range(self.tp_size)
        ]
        for place, line in zip(places[1:], self._pipes, strict=True):
            line.send(place)
        self.device = str(init_process_group(places[0]))
        stored = self._stored
        image = load_image_tokenizer(stored)
        self.components = ModelParts(
            read_sharded_decoder(stored), Tokenizers(stored.text_tokenizer, image)
        )
        self._wait_for_workers()

    def _wait_for_workers(self) -> None:
        """Wait until each follower has done its part."""
        for rank in range(1, self.tp_size):
            if (why := self._failure_of(rank)) is not None:
                raise self._worker_lost(rank, why)

    def _failure_of(self, rank: int) -> str | None:
        """What a follower says: None, that it is well, or how it has ended. Waits for it."""
        process, line = self._processes[rank - 1], self._pipes[rank - 1]
        with contextlib.suppress(EOFError, OSError):
            word: str | None = line.recv()
            return None if word is None else word.rstrip(".")
        process.join(_JOIN_TIMEOUT_SECONDS)
        code = process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"status {code}"

    def _worker_lost(self, rank: int, how: str) -> RankError:
        return RankError(
            f"rank {rank} of {self.tp_size} has ended ({how}); expected all of them, for each holds a "
            "part of the decoder. Look for what it wrote before this line, and start again."
        )

    def start_engines(self, budget: EngineConfig) -> None:
        """Have the followers make their engines: from now on each step is ordered.

        Raises:
            GenerationError: they have, or the budget asks for what ranks cannot do together.
        """
        if self._has_engine:
            raise GenerationError(
                "ranks that share a decoder run one engine, and it is taken; expected no second "
                "one. Ask the one there is."
            )
        if budget.cuda_graphs:
            raise GenerationError(
                f"captured steps are asked of {self.tp_size} ranks that share a decoder; expected them "
                "of a decoder on one GPU. Leave captured out."
            )
        self._has_engine = True
        self.send(budget)

    def send(self, orders: EngineConfig | StepCommand) -> None:
        """Tell all followers.

        Raises:
            OSError: one is gone.
        """
        for line in self._pipes:
            line.send(orders)

    def on_failure(self, tell: Callable[[RankError], None]) -> None:
        """Have somebody told when the group ends although nobody closed it. Any thread may tell."""
        with self._lock:
            self._listeners.append(tell)
        if self.error is not None:
            tell(self.error)

    def _wait_for_exit(self) -> None:
        """In a thread: wait for the end of any follower."""
        wait([process.sentinel for process in self._processes])
        if (error := self._shut_down()) is not None:
            for tell in list(self._listeners):
                tell(error)

    def step_failed(self, error: Exception) -> RankError:
        """End the group, as this rank's step has failed; why, in words for all who wait."""
        # A follower's end breaks the step as well: then that is the reason.
        wait([process.sentinel for process in self._processes], timeout=1.0)
        # Gloo begins with a place in its own source.
        what = re.sub(r"^\[\S+\] ", "", " ".join(str(error).split())).rstrip(".")
        made = RankError(
            f"{self.tp_size} ranks could not finish a step together ({type(error).__name__}: {what}); "
            "expected all of them to within the time there is. Look for what they wrote before this "
            "line, and start again."
        )
        return self._shut_down(made) or made

    def _shut_down(self, otherwise: RankError | None = None) -> RankError | None:
        """End the group because of a follower that has ended, or else for another reason.

        Returns:
            The first reason there was; None where there is none, or the group is closed.
        """
        with self._lock:
            if self.error is None and not self._closing:
                dead = [not process.is_alive() for process in self._processes]
                rank = dead.index(True) + 1 if True in dead else 0
                self.error = (
                    self._worker_lost(rank, self._failure_of(rank) or "") if rank else otherwise
                )
            if self.error is not None:
                self._kill()
            return self.error

    def _kill(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
                process.join(_JOIN_TIMEOUT_SECONDS)

    def close(self) -> None:
        """End the followers and leave the process group; it may be called twice."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        if self.error is None:
            for line in self._pipes:
                with contextlib.suppress(OSError):
                    line.send(None)
        # After a failure NCCL may wait for ever for those that are gone; this process ends anyway.
        if torch.distributed.is_initialized() and (self.error is None or self._device == "cpu"):
            torch.distributed.destroy_process_group()
        for process in self._processes:
            process.join(_JOIN_TIMEOUT_SECONDS)
        self._kill()
        for line in self._pipes:
            line.close()
        self._rendezvous_folder.cleanup()
        torch.set_num_threads(self._threads)
        atexit.unregister(self._kill)


def device_kind(name: str, size: int) -> str:
    """The kind of device that ranks have: cpu, or cuda with a GPU for each.

    Raises:
        ConfigError: there is no such device here.
        GenerationError: there are fewer GPUs than ranks.
    """
    kind = choose_device(name).type
    if kind == "cuda" and torch.cuda.device_count() < size:
        raise GenerationError(
            f"{size} ranks want a GPU each, but {torch.cuda.device_count()} can be seen; expected "
            "as many. Start fewer ranks, or all of them on --device cpu."
        )
    return kind
