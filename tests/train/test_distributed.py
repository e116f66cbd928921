"""Two ranks train what one trains, and resume each other's runs."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from calumma.errors import ConfigError
from calumma.train import distributed
from calumma.train.distributed import SINGLE_PROCESS, DistContext, init_distributed, require_divisible_batch
from calumma.train.image_tokenizer_trainer import train_image_tokenizer
from calumma.train.run_log import METRICS_NAME
from tests.launch import free_ports, run_ranks
from tests.train import ranks
from tests.train.runs import records_steps


def train_with_two_ranks(folder: Path) -> None:
    ports = free_ports(len(ranks.RUNS))
    run_ranks(2, ranks.train, folder, ports, port=ports[0], logs=folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do all runs with two ranks and with one."""
    folder = tmp_path_factory.mktemp("ranks")
    train_with_two_ranks(folder)
    for name, config in ranks.RUNS.items():
        train_image_tokenizer(ranks.run_config(config), ranks.documents(), folder / f"{name}-1")
    return folder


def require_equal_weights(run: Path, expected: Path) -> None:
    """Compare weights to 1e-5; one in ten thousand may differ by a step or two of 1e-3.

    Where a gradient is nearly zero, Adam turns rounding errors into a full step.
    """
    ours, theirs = (load_file(r / "image_tokenizer.safetensors") for r in (run, expected))
    assert ours.keys() == theirs.keys()
    difference = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in theirs])
    assert float((difference > 1e-5).float().mean()) < 1e-4
    assert float(difference.max()) < 2e-3


def losses(run: Path) -> list[float]:
    lines = (run / METRICS_NAME).read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("name", ranks.RUNS)
def test_two_ranks_with_half_a_batch_each_do_what_one_does(runs: Path, name: str) -> None:
    one, two = runs / f"{name}-1", runs / f"{name}-2"
    assert losses(two) == pytest.approx(losses(one), abs=1e-5, rel=1e-5)
    require_equal_weights(two, one)


@pytest.mark.parametrize("name", ranks.RUNS)
def test_all_ranks_end_with_the_same_bits(runs: Path, name: str) -> None:
    first, second = ((runs / f"{name}-2-rank-{rank}").read_text() for rank in range(2))
    assert first == second


def test_one_rank_resumes_a_run_of_two(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "means-2", run)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    steps: list[int] = []
    config = ranks.run_config(ranks.RUNS["means"])
    train_image_tokenizer(config, ranks.documents(), run, records_steps(steps))
    assert steps == [2, 3, 4]
    require_equal_weights(run, runs / "means-1")


def test_a_hanging_rank_is_waited_for_as_long_as_configured(tmp_path: Path) -> None:
    run_ranks(2, ranks.wait_for_a_hanging_rank, tmp_path, port=free_ports(1)[0], logs=tmp_path)
    assert 0.5 < float((tmp_path / "waited").read_text()) < 30  # of the 60 s for which the other one hangs
    trace = pickle.loads((tmp_path / "gloo-trace-rank-0").read_bytes())  # torchfrtrace reads it
    assert trace["entries"][-1]["profiling_name"] == "gloo:all_reduce"


def test_nccl_is_bound_to_the_gpu_and_records_collectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "9"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE"):
        monkeypatch.setenv(name, "")  # to be restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    chosen: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    stores = iter([(torch.distributed.HashStore(), 9, 16)])
    monkeypatch.setattr(distributed, "rendezvous", lambda *args, **kwargs: stores)

    class InitializedError(Exception):
        pass

    def init_process_group(backend: str, **options: Any) -> None:
        assert (backend, options["rank"], options["world_size"]) == ("nccl", 9, 16)
        assert options["device_id"] == torch.device("cuda", 1)
        assert options["timeout"].total_seconds() == 1800
        assert os.environ["TORCH_FR_BUFFER_SIZE"] == "2000"
        assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "nccl-trace-rank-")
        assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0", "a variable that is set stays"
        raise InitializedError

    monkeypatch.setattr(torch.distributed, "init_process_group", init_process_group)
    with pytest.raises(InitializedError), init_distributed(torch.device("cuda"), tmp_path):
        pass
    assert chosen == [torch.device("cuda", 1)]


def test_collectives_of_one_process_return_their_input() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert SINGLE_PROCESS.sum(tensor) is SINGLE_PROCESS.mean(tensor) is SINGLE_PROCESS.gather(tensor) is tensor
    assert SINGLE_PROCESS.is_main and not SINGLE_PROCESS.any(False) and SINGLE_PROCESS.any(True)
    assert not DistContext(rank=1, size=2).is_main


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        require_divisible_batch("training.batch_size", 9, 4)
    assert str(caught.value) == (
        "training.batch_size=9 does not divide over 4 ranks; the nearest that does is "
        "training.batch_size=8. Change it, or start another number of ranks."
    )
