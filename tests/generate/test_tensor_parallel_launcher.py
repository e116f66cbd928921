"""Worker groups: refused before a process is started, and ended by a worker's failure."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import GenerationError, RankError
from calumma.generate.params import EngineConfig
from calumma.generate.tensor_parallel import launcher
from calumma.generate.tensor_parallel.launcher import WorkerGroup, device_kind
from calumma.generate.tensor_parallel.tp_engine import TensorParallelModel
from tests.generate.tensor_parallel_processes import failing_worker
from tests.launch import SERVER


@pytest.fixture
def folder(model_parts: ModelComponents, tmp_path: Path) -> Path:
    save_model(tmp_path / "tiny", model_parts)
    return tmp_path / "tiny"


def test_ranks_that_do_not_divide_the_heads_are_refused(folder: Path) -> None:
    with pytest.raises(GenerationError, match="3 ranks do not divide 2 key heads, 1 groups of"):
        WorkerGroup(folder, 3, device="cpu")
    assert multiprocessing.active_children() == []


def test_ranks_without_a_gpu_each_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(GenerationError) as caught:
        device_kind("auto", 2)
    assert str(caught.value) == (
        "2 ranks need a GPU each, but 1 are visible; expected as many. Start fewer ranks, or all "
        "of them on --device cpu."
    )
    assert device_kind("auto", 1) == "cuda"
    assert device_kind("cpu", 2) == "cpu"


def test_a_worker_that_hangs_ends_the_group_in_time_and_cuda_graphs_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "SPAWN_CONTEXT", SERVER)
    group = WorkerGroup(folder, 2, device="cpu", timeout_seconds=4.0)
    model = TensorParallelModel(group)
    with pytest.raises(GenerationError) as caught:
        model.new_engine(EngineConfig(cuda_graphs=True))
    assert str(caught.value) == (
        "cuda_graphs=True with 2 tensor-parallel ranks; expected a decoder on one GPU. Leave cuda_graphs out."
    )
    model.generate(["a"], max_new_tokens=2)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(RankError) as hung:
        model.generate(["a"], max_new_tokens=2)
    assert str(hung.value) == (
        "2 ranks could not finish a step together (RuntimeError: Timed out waiting 4000ms for recv "
        "operation to complete); expected all of them to, in time. See their output before this "
        "line, and start again."
    )
    assert multiprocessing.active_children() == []
    group.close()
    group.close()
    assert not torch.distributed.is_initialized()


def test_the_error_of_a_worker_ends_the_group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "SPAWN_CONTEXT", SERVER)
    monkeypatch.setattr(launcher, "worker_main", failing_worker)
    with pytest.raises(RankError) as caught:
        WorkerGroup(folder, 2, device="cpu")
    assert str(caught.value) == (
        "rank 1 of 2 has exited (out of memory); expected all of them, for each holds a shard of "
        "the decoder. See its output before this line, and start again."
    )
    assert multiprocessing.active_children() == []
