"""Tensor-parallel launcher: starts, commands and ends the ranks of one machine.

This process is rank 0; the workers (`worker.py`) are its children. If one of them exits or hangs,
the group ends: no rank is of use without the others.
"""

import atexit
import contextlib
import multiprocessing
import re
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
import torch.distributed

from calumma.checkpoints.model_folder import ModelComponents, load_image_tokenizer, open_model_folder
from calumma.errors import GenerationError, RankError
from calumma.generate.params import EngineConfig
from calumma.generate.tensor_parallel.shard import read_sharded_decoder, require_divisible
from calumma.generate.tensor_parallel.worker import StepCommand, WorkerConfig, init_process_group, worker_main
from calumma.runtime import resolve_device, resolve_dtype
from calumma.tokens.folder import Tokenizers

STEP_TIMEOUT_SECONDS = 60.0
"""Seconds that a rank waits for the others within a step before it takes them to hang."""

SPAWN_CONTEXT = multiprocessing.get_context("spawn")
"""Start method of the workers: CUDA does not survive a fork."""

_JOIN_TIMEOUT_SECONDS = 10.0
"""Seconds for a worker to exit when asked to."""


class WorkerGroup:
    """The ranks of a tensor-parallel decoder, seen from rank 0. A process has at most one group."""

    def __init__(
        self,
        folder: Path,
        tp_size: int,
        *,
        device: str = "auto",
        dtype: str = "float32",
        timeout_seconds: float = STEP_TIMEOUT_SECONDS,
    ) -> None:
        """Start `tp_size` - 1 workers, and load the model together with them.

        Raises:
            GenerationError: the decoder does not divide over the ranks, or there are too few GPUs,
                or this process is in a group already.
            RankError: a worker has exited.
        """
        self.tp_size = tp_size
        self.error: RankError | None = None
        """Error that ended the group, if any."""

        self._lazy_model = open_model_folder(folder)
        require_divisible(self._lazy_model.decoder_config, tp_size)
        if torch.distributed.is_initialized():
            raise GenerationError(
                f"this process is in a group of {torch.distributed.get_world_size()} ranks; "
                "expected one that is in none. Close its model, or start another process."
            )
        self._device = device_kind(device, tp_size)
        resolve_dtype(dtype)
        self._lock = threading.RLock()
        self._is_closing = False
        self._callbacks: list[Callable[[RankError], None]] = []
        self._num_threads = torch.get_num_threads()
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

    def _start(self, folder: Path, dtype: str, timeout_seconds: float) -> None:
        for rank in range(1, self.tp_size):
            pipe, worker_pipe = SPAWN_CONTEXT.Pipe()
            name = f"calumma-rank-{rank}"
            process = SPAWN_CONTEXT.Process(target=worker_main, args=(worker_pipe,), name=name)
            process.start()
            worker_pipe.close()
            self._processes.append(process)
            self._pipes.append(pipe)
        # The timeout of joining the group must not include the imports of the slowest worker.
        self._wait_for_workers()
        config = WorkerConfig(
            rank=0,
            world_size=self.tp_size,
            folder=folder.resolve(),
            device=self._device,
            dtype=dtype,
            rendezvous_file=Path(self._rendezvous_folder.name) / "ranks",
            num_threads=max(1, self._num_threads // self.tp_size),
            timeout_seconds=timeout_seconds,
        )
        for rank, pipe in enumerate(self._pipes, start=1):
            pipe.send(replace(config, rank=rank))
        self.device = str(init_process_group(config))
        model = self._lazy_model
        tokenizers = Tokenizers(model.text_tokenizer, load_image_tokenizer(model))
        self.components = ModelComponents(read_sharded_decoder(model), tokenizers)
        self._wait_for_workers()

    def _wait_for_workers(self) -> None:
        """Wait until each worker reports; raise `RankError` for one that has failed."""
        for rank in range(1, self.tp_size):
            if (failure := self._failure_of(rank)) is not None:
                raise self._worker_lost(rank, failure)

    def _failure_of(self, rank: int) -> str | None:
        """Wait for a worker's report: None, its error, or its exit status."""
        process, pipe = self._processes[rank - 1], self._pipes[rank - 1]
        with contextlib.suppress(EOFError, OSError):
            report: str | None = pipe.recv()
            return None if report is None else report.rstrip(".")
        process.join(_JOIN_TIMEOUT_SECONDS)
        code = process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"status {code}"

    def _worker_lost(self, rank: int, failure: str) -> RankError:
        return RankError(
            f"rank {rank} of {self.tp_size} has exited ({failure}); expected all of them, for each "
            "holds a shard of the decoder. See its output before this line, and start again."
        )

    def start_engines(self, config: EngineConfig) -> None:
        """Have the workers create their engines; only once, and without CUDA graphs."""
        if self._has_engine:
            raise GenerationError(
                "a tensor-parallel decoder has one engine, and it exists already; expected no "
                "second one. Use the first one."
            )
        if config.cuda_graphs:
            raise GenerationError(
                f"cuda_graphs=True with {self.tp_size} tensor-parallel ranks; expected a decoder "
                "on one GPU. Leave cuda_graphs out."
            )
        self._has_engine = True
        self.send(config)

    def send(self, command: EngineConfig | StepCommand) -> None:
        """Send a command to all workers; raises `OSError` if one has exited."""
        for pipe in self._pipes:
            pipe.send(command)

    def on_failure(self, callback: Callable[[RankError], None]) -> None:
        """Call back, from any thread, if the group ends without being closed."""
        with self._lock:
            self._callbacks.append(callback)
        if self.error is not None:
            callback(self.error)

    def _wait_for_exit(self) -> None:
        """Wait in a thread until any worker exits."""
        wait([process.sentinel for process in self._processes])
        if (error := self._shut_down()) is not None:
            for callback in list(self._callbacks):
                callback(error)

    def step_failed(self, error: Exception) -> RankError:
        """End the group because a step of this rank has failed; returns the clients' error."""
        # A worker that exits breaks the step as well: then that is the reason.
        wait([process.sentinel for process in self._processes], timeout=1.0)
        # Gloo's messages begin with a line of its source.
        message = re.sub(r"^\[\S+\] ", "", " ".join(str(error).split())).rstrip(".")
        step_error = RankError(
            f"{self.tp_size} ranks could not finish a step together ({type(error).__name__}: {message}); expected all "
            "of them to, in time. See their output before this line, and start again."
        )
        return self._shut_down(step_error) or step_error

    def _shut_down(self, other_error: RankError | None = None) -> RankError | None:
        """End the group after an error; returns the first one, None if the group is closed."""
        with self._lock:
            if self.error is None and not self._is_closing:
                dead = [not process.is_alive() for process in self._processes]
                rank = dead.index(True) + 1 if True in dead else 0
                self.error = self._worker_lost(rank, self._failure_of(rank) or "") if rank else other_error
            if self.error is not None:
                self._kill()
            return self.error

    def _kill(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
                process.join(_JOIN_TIMEOUT_SECONDS)

    def close(self) -> None:
        """End the workers and leave the process group; may be called twice."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
        if self.error is None:
            for pipe in self._pipes:
                with contextlib.suppress(OSError):
                    pipe.send(None)
        # After a failure NCCL may wait forever for lost workers; this process ends anyway.
        if torch.distributed.is_initialized() and (self.error is None or self._device == "cpu"):
            torch.distributed.destroy_process_group()
        for process in self._processes:
            process.join(_JOIN_TIMEOUT_SECONDS)
        self._kill()
        for pipe in self._pipes:
            pipe.close()
        self._rendezvous_folder.cleanup()
        torch.set_num_threads(self._num_threads)
        atexit.unregister(self._kill)


def device_kind(name: str, tp_size: int) -> str:
    """Resolve the kind of device of the ranks: cpu, or cuda with a GPU for each."""
    kind = resolve_device(name).type
    if kind == "cuda" and torch.cuda.device_count() < tp_size:
        raise GenerationError(
            f"{tp_size} ranks need a GPU each, but {torch.cuda.device_count()} are visible; "
            "expected as many. Start fewer ranks, or all of them on --device cpu."
        )
    return kind
