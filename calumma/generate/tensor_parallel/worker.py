"""Tensor-parallel worker: a process that holds a shard of a decoder and repeats rank 0's steps.

rank 0    WorkerConfig  EngineConfig  StepCommand  StepCommand ... None
               |              |            |            |           |
worker    None           None          a step       a step       exit     or, at any time, a str:
       (started)  (shard is loaded)                               the error that ends it

Whatever depends on time, or on the order of threads, is decided by rank 0. An idle worker waits for
its pipe, which costs nothing.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed

from calumma.checkpoints.model_folder import open_model_folder
from calumma.errors import CalummaError, RankError
from calumma.generate.engine import Engine
from calumma.generate.params import EngineConfig, Request
from calumma.generate.request import RequestState
from calumma.generate.tensor_parallel.shard import read_sharded_decoder
from calumma.runtime import resolve_dtype, use_loopback_interface


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a rank needs to join the group and load its shard."""

    rank: int
    world_size: int

    folder: Path
    """The model folder."""

    device: str
    """cpu, or cuda: then each rank uses the GPU of its number."""

    dtype: str

    rendezvous_file: Path
    """File through which the ranks find each other."""

    num_threads: int
    """CPU threads of each rank."""

    timeout_seconds: float
    """Seconds a rank waits for the others within a step."""


@dataclass(frozen=True, kw_only=True)
class StepCommand:
    """What rank 0's engine was given since its last step; all ranks then take the next step."""

    new_requests: dict[int, Request]
    """New requests by number, in order."""

    aborted: list[int]
    """Numbers of aborted requests."""

    last_token_ids: list[int]
    """Tokens that rank 0's last step returned; a rank with others is out of sync."""


def init_process_group(config: WorkerConfig) -> torch.device:
    """Join the process group, which waits for all ranks; returns the rank's device."""
    use_loopback_interface()
    torch.set_num_threads(config.num_threads)
    on_gpu = config.device == "cuda"
    device = torch.device("cuda", config.rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=config.rendezvous_file.as_uri(),
        rank=config.rank,
        world_size=config.world_size,
        timeout=timedelta(seconds=config.timeout_seconds),
    )
    return device


def worker_main(pipe: Connection) -> None:
    """Run a worker process until rank 0 closes the pipe."""
    # Ctrl-C and a service's SIGTERM reach all processes of a group. Rank 0 still needs this one to
    # finish the running requests.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    status = 0
    try:
        _run(pipe)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        status = 1  # rank 0 has exited
    except CalummaError as error:
        with contextlib.suppress(OSError):
            pipe.send(str(error))
        status = 1
    # Gloo's threads may still be ending, and abort an interpreter that closes.
    os._exit(status)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(pipe: Connection) -> None:
    pipe.send(None)
    config: WorkerConfig = pipe.recv()
    device = init_process_group(config)
    model = open_model_folder(config.folder)
    decoder = read_sharded_decoder(model).to(device=device, dtype=resolve_dtype(config.dtype))
    pipe.send(None)
    engine_config: EngineConfig | None = pipe.recv()
    if engine_config is not None:
        codes = model.vq_config.codes_per_image
        vocabulary = model.text_tokenizer.vocabulary
        run_steps(pipe, Engine(decoder, vocabulary, codes, config=engine_config))
    torch.distributed.destroy_process_group()


def run_steps(pipe: Connection, engine: Engine) -> None:
    """Take the steps that rank 0 commands; raises `RankError` if this rank samples other tokens."""
    states: dict[int, RequestState] = {}
    token_ids: list[int] = []
    while (command := pipe.recv()) is not None:
        assert isinstance(command, StepCommand)
        if command.last_token_ids != token_ids:
            raise RankError(
                f"it sampled the tokens {token_ids}, rank 0 {command.last_token_ids}; expected the "
                "same on all ranks. Give the ranks devices of one kind."
            )
        for number, request in command.new_requests.items():
            states[number] = engine.submit(request)
        for number in command.aborted:
            engine.abort(states.pop(number))
        token_ids = [id_ for _, id_ in engine.step()]
        states = {number: state for number, state in states.items() if not state.is_finished}
