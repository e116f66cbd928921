"""A new run leaves CPUs to other programs, and a resumed one has the number of threads that it began with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from calumma.checkpoints.training_checkpoint import SavedCheckpoint, newest_checkpoint
from calumma.train.numerics import Numerics, restored_num_threads
from calumma.train.pretraining import pretrain
from calumma.train.training_loop import TrainCallbacks
from tests.train.runs import KilledError, assert_same_weights
from tests.train.test_pretraining import config

RUN = Path("out/run")
NUMERICS = Numerics(RUN, "float32", has_threads=True)


def saved(**state: Any) -> SavedCheckpoint:
    return SavedCheckpoint(RUN, 3, {"state": {"dict": [list(entry) for entry in state.items()]}})


def no_measurement() -> int:
    raise AssertionError


@pytest.mark.parametrize(("busy", "expected"), [(0, 2), (1, 1), (2, 1)])
def test_a_new_run_leaves_the_cpus_of_other_programs(
    busy: int, expected: int, two_threads: None, caplog: pytest.LogCaptureFixture
) -> None:
    NUMERICS.start(lambda: busy)
    assert torch.get_num_threads() == expected
    cpus = "1 CPU" if busy == 1 else f"{busy} CPUs"
    assert caplog.messages == [
        f"out/run: other programs use {cpus}, so training uses 1 instead of 2 threads. "
        "Set OMP_NUM_THREADS=2 to use 2: the results differ by rounding."
    ] * (busy > 0)
    assert NUMERICS.to_json() == {"precision": "float32", "num_threads": expected}


def test_the_number_of_threads_of_the_user_stays(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    NUMERICS.start(None)
    on_gpu_or_ranks = Numerics(RUN, "bfloat16", has_threads=False)
    on_gpu_or_ranks.start(no_measurement)
    on_gpu_or_ranks.resume(saved(precision="bfloat16", num_threads=1))
    assert on_gpu_or_ranks.to_json() == {"precision": "bfloat16"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
        NUMERICS.start(no_measurement)
        monkeypatch.delenv(name)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    NUMERICS.start(no_measurement)


def test_a_resumed_run_takes_its_number_of_threads_again(two_threads: None, caplog: pytest.LogCaptureFixture) -> None:
    NUMERICS.resume(saved(precision="float32"))  # written before the number was recorded
    NUMERICS.resume(saved(precision="float32", num_threads=2))
    assert (torch.get_num_threads(), caplog.messages) == (2, [])
    with restored_num_threads():
        NUMERICS.resume(saved(precision="float32", num_threads=3))
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 2
    assert caplog.messages == [
        "out/run: the steps up to 3 used 3 threads, so training uses 3 instead of 2 threads. "
        "Set OMP_NUM_THREADS=2 to use 2: the results differ by rounding."
    ]


def test_another_number_of_threads_or_precision_is_logged(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    NUMERICS.resume(saved(precision="bfloat16", num_threads=1))
    assert torch.get_num_threads() == 2
    expected = [
        "out/run: steps up to 3 were computed in bfloat16, the next ones in float32: the results differ by rounding.",
        "out/run: steps up to 3 were computed with 1 thread, the next ones with 2: the results differ by rounding.",
    ]
    assert caplog.messages == expected
    Numerics(RUN, "float32", has_threads=True, logs=False).resume(saved(precision="bfloat16", num_threads=1))
    assert caplog.messages == expected


def test_a_killed_run_ends_in_the_same_bits_whatever_other_programs_do(
    two_threads: None, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    threads: list[int] = []

    def callbacks(busy: int, dies_after: int = 0) -> TrainCallbacks:
        def on_step(step: int, metrics: Mapping[str, Any]) -> None:
            threads.append(torch.get_num_threads())
            if step == dies_after:
                raise KilledError

        return TrainCallbacks(on_step=on_step, num_busy_cpus=lambda: busy)

    expected = pretrain(config(shards), tmp_path / "undisturbed", callbacks(busy=1))
    with pytest.raises(KilledError):
        pretrain(config(shards), tmp_path / "killed", callbacks(busy=1, dies_after=5))
    resumed = pretrain(config(shards), tmp_path / "killed", callbacks(busy=0))
    assert threads == [1] * (8 + 5 + 5)
    assert torch.get_num_threads() == 2
    assert_same_weights(resumed, expected)
    assert caplog.messages[-1].startswith(f"{tmp_path / 'killed'}: the steps up to 3 used 1 thread, so ")
    checkpoint = newest_checkpoint(tmp_path / "killed")
    assert checkpoint is not None and checkpoint.load_meta()["num_threads"] == 1
