"""A process that holds a part of a decoder and takes the steps that its leader takes.

leader      Place          Budget    Orders    Orders  ...  None
              |               |         |         |           |
follower  None              None      a step    a step       end        or, at any time, a line:
          (is here)    (has its part)                                   why it goes on no more

Whatever depends on time, or on the order of threads, is decided by the leader alone. A follower
that has nothing to do waits for a line of its pipe, which costs nothing.
"""

from __future__ import annotations

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
from calumma.runtime import choose_dtype, speak_on_loopback


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Which rank a process is, and what of."""

    rank: int
    world_size: int

    folder: Path
    """The model."""

    device: str
    """cpu, or cuda: then each rank has the GPU of its number."""

    dtype: str
    rendezvous_file: Path
    """A file through which the ranks find each other."""

    num_threads: int
    """Of a CPU, for each rank."""

    timeout_seconds: float
    """For how long a rank waits for the others in the middle of a step."""


@dataclass(frozen=True, kw_only=True)
class StepCommand:
    """What the leader's engine was given since its last step; with these all take the next one."""

    new_requests: dict[int, Request]
    """New requests, in their order, by their numbers."""

    aborted: list[int]
    """Those that are cancelled."""

    last_token_ids: list[int]
    """The ids that the leader's last step chose: with others a rank has lost its way."""


def init_process_group(place: WorkerConfig) -> torch.device:
    """Take a place in the process group, which waits for all ranks; the rank's device."""
    speak_on_loopback()
    torch.set_num_threads(place.num_threads)
    on_gpu = place.device == "cuda"
    device = torch.device("cuda", place.rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=place.rendezvous_file.as_uri(),
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=place.timeout_seconds),
    )
    return device


def worker_main(line: Connection) -> None:
    """The whole life of a follower.

    Args:
        line: to the leader; at its other end's end this process ends too.
    """
    # Ctrl-C and a service's SIGTERM reach all processes of a group. The leader still needs this
    # one to finish what is under way.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    status = 0
    try:
        _run(line)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        status = 1  # the leader is gone
    except CalummaError as error:
        with contextlib.suppress(OSError):
            line.send(str(error))
        status = 1
    # Gloo's threads may still be ending, and abort an interpreter that closes.
    os._exit(status)


def _exit_with_parent() -> None:
    """End this process when the leader's has ended, however it did, and whatever goes on here."""
    leader = multiprocessing.parent_process()
    assert leader is not None
    leader.join()
    os._exit(1)


def _run(line: Connection) -> None:
    line.send(None)
    place: WorkerConfig = line.recv()
    device = init_process_group(place)
    model = open_model_folder(place.folder)
    decoder = read_sharded_decoder(model).to(device=device, dtype=choose_dtype(place.dtype))
    line.send(None)
    budget: EngineConfig | None = line.recv()
    if budget is not None:
        codes = model.vq_config.codes_per_image
        run_steps(line, Engine(decoder, model.text_tokenizer.vocabulary, codes, config=budget))
    torch.distributed.destroy_process_group()


def run_steps(line: Connection, engine: Engine) -> None:
    """Step as the leader orders, until it orders the end.

    Raises:
        RankError: other ids were chosen here than there.
        EOFError: the leader is gone.
    """
    works: dict[int, RequestState] = {}
    chosen: list[int] = []
    while (orders := line.recv()) is not None:
        assert isinstance(orders, StepCommand)
        if orders.last_token_ids != chosen:
            raise RankError(
                f"it chose the ids {chosen}, the first rank {orders.last_token_ids}; expected the same on "
                "all. Give the ranks devices of one kind."
            )
        for number, request in orders.new_requests.items():
            works[number] = engine.submit(request)
        for number in orders.aborted:
            engine.abort(works.pop(number))
        chosen = [id_ for _, id_ in engine.step()]
        works = {number: work for number, work in works.items() if not work.is_finished}
