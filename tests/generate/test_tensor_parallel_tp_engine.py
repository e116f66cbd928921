"""Two ranks generate the tokens of one process, and end together."""

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import GenerationError, RankError
from calumma.generate.async_engine import RequestOutputStream
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, ImageSampling, Request, TextSampling
from calumma.generate.tensor_parallel import launcher
from calumma.generate.tensor_parallel.tp_engine import TensorParallelAsyncEngine, TensorParallelModel
from tests.generate.tensor_parallel_processes import run_rank_zero
from tests.launch import SERVER

WILD = TextSampling(temperature=5.0, top_p=1.0)
IMAGES = (
    ImageSampling(temperature=1.0, top_p=1.0),
    ImageSampling(temperature=1.0, top_p=1.0, guidance_scale=1.0, image_guidance_scale=1.0),
    ImageSampling(temperature=1.0, top_p=1.0, guidance_scale=2.0, image_guidance_scale=2.0, num_speculative_tokens=2),
)
"""Three sequences, one sequence, two sequences and drafts."""


@pytest.fixture(scope="module")
def folder(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    started = tmp_path_factory.mktemp("shared") / "tiny"
    save_model(started, model_parts)
    return started


@pytest.fixture(scope="module")
def alone(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


def worker_pid() -> int:
    (process,) = multiprocessing.active_children()
    assert process.name == "calumma-rank-1"
    assert process.pid is not None
    return process.pid


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TensorParallelAsyncEngine]:
    budget = EngineConfig(max_num_seqs=12, max_cached_tokens=1500, prefill_chunk_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "SPAWN_CONTEXT", SERVER)
        with TensorParallelAsyncEngine(folder, 2, device="cpu", config=budget) as started:
            yield started
    assert multiprocessing.active_children() == []


def mixed(model: Model) -> list[Request]:
    """Return requests for text and images, with all kinds of guidance and prompt lengths."""
    prompts: list[list[Any]] = [["a red"], ["the small green cross, 123 times! " * 2], ["a"]]
    return [
        model.request(
            prompts[number % 3],
            max_new_tokens=20 + number,
            seed=number,
            text=WILD,
            image=IMAGES[number % len(IMAGES)],
            modality=("any", "any", "image", "text")[number % 4],
        )
        for number in range(12)
    ]


def tokens_of(model: Model, requests: list[Request]) -> list[list[int]]:
    states = model.engine.submit_all(requests)
    for _ in model.engine.stream_tokens(states):
        pass
    return [state.output_token_ids for state in states]


def test_a_mixture_of_requests_gets_the_tokens_of_the_full_model(
    engine: TensorParallelAsyncEngine, alone: Model
) -> None:
    requests = mixed(alone)
    streams = [engine.submit(request) for request in requests]
    expected = tokens_of(alone, requests)
    assert [stream.sample().token_ids for stream in streams] == expected
    assert any(id_ in alone.vocabulary.codes for ids in expected for id_ in ids)


def test_aborted_requests_leave_the_others_as_they_were(engine: TensorParallelAsyncEngine, alone: Model) -> None:
    requests = mixed(alone)
    expected = tokens_of(alone, requests)
    random = np.random.default_rng(0)
    others: list[tuple[int, RequestOutputStream]] = []
    for _ in range(20):
        victim, other = (int(number) for number in random.integers(12, size=2))
        aborted = engine.submit(requests[victim])
        others.append((other, engine.submit(requests[other])))
        for _ in zip(range(int(random.integers(4))), aborted, strict=False):
            pass
        aborted.abort()
        ids = aborted.sample().token_ids
        assert ids == expected[victim][: len(ids)]
    assert all(stream.sample().token_ids == expected[number] for number, stream in others)


def _is_idle_for_half_a_second(stat: Path) -> bool:
    """Return whether the counts of processor time in a /proc/PID/stat file stay equal for 0.5 s."""
    before = stat.read_text().rpartition(")")[2].split()[11:13]
    time.sleep(0.5)
    return before == stat.read_text().rpartition(")")[2].split()[11:13]


def test_each_rank_holds_half_of_the_blocks_and_sleeps_while_idle(
    engine: TensorParallelAsyncEngine, alone: Model
) -> None:
    sharded, full = (
        sum(parameter.numel() for parameter in model.decoder.blocks.parameters()) for model in (engine.model, alone)
    )
    assert full / 2 <= sharded < 0.52 * full
    stat = Path(f"/proc/{worker_pid()}/stat")
    if stat.exists():
        assert any(_is_idle_for_half_a_second(stat) for _ in range(40)), (
            "the worker uses processor time while no request runs"
        )


def test_a_second_engine_and_a_second_group_are_refused(engine: TensorParallelAsyncEngine, folder: Path) -> None:
    with pytest.raises(GenerationError) as caught:
        engine.model.generate(["a"])
    assert str(caught.value) == (
        "a tensor-parallel decoder has one engine, and it exists already; expected no second one. Use the first one."
    )
    with pytest.raises(GenerationError) as caught:
        TensorParallelAsyncEngine(folder, 2, device="cpu")
    assert str(caught.value) == (
        "this process is in a group of 2 ranks; expected one that is in none. Close its model, or "
        "start another process."
    )


def test_at_last_a_worker_that_is_killed_ends_all_streams_with_the_reason(
    engine: TensorParallelAsyncEngine, alone: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[RankError] = []
    engine.worker_group.on_failure(errors.append)
    step, num_steps, is_killed = engine._engine.step, itertools.count(), threading.Event()

    def wait_after_ten_steps() -> Any:
        if next(num_steps) >= 10:
            assert is_killed.wait(60)
        return step()

    monkeypatch.setattr(engine._engine, "step", wait_after_ten_steps)
    long = alone.request(["a"], max_new_tokens=100, text=WILD, max_images=0, seed=1)
    streams = [engine.submit(long) for _ in range(3)]
    next(iter(streams[0]))
    os.kill(worker_pid(), signal.SIGKILL)
    is_killed.set()
    for stream in streams:
        with pytest.raises(RankError) as caught:
            stream.sample()
    expected = (
        "rank 1 of 2 has exited (SIGKILL); expected all of them, for each holds a shard of the "
        "decoder. See its output before this line, and start again."
    )
    assert str(caught.value) == str(engine.error) == expected
    with pytest.raises(RankError):
        engine.submit(long)
    engine.worker_group.on_failure(errors.append)
    assert {str(error) for error in errors} == {expected}


def has_ended(pid: int) -> bool:
    """Return whether a process has exited, reaped or not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_signals_do_not_end_a_worker_and_the_end_of_rank_zero_does(folder: Path, alone: Model) -> None:
    pipe, rank_zero_pipe = SERVER.Pipe()
    rank_zero = SERVER.Process(target=run_rank_zero, args=(folder, rank_zero_pipe))
    rank_zero.start()
    (worker,) = pipe.recv()
    # Ctrl-C and services signal all processes of a group: rank 0 decides when to end.
    os.kill(worker, signal.SIGINT)
    os.kill(worker, signal.SIGTERM)
    pipe.send(None)
    assert pipe.recv() == alone.generate(["a"], max_new_tokens=2).token_ids
    assert not has_ended(worker)
    rank_zero.kill()
    rank_zero.join()
    for _ in range(1200):
        if has_ended(worker):
            return
        time.sleep(0.05)
    raise AssertionError("the worker goes on without rank 0")


def test_prompts_have_no_log_probabilities() -> None:
    with pytest.raises(GenerationError) as caught:
        TensorParallelModel.prompt_logprobs(None, [[1, 2]])  # type: ignore[arg-type]
    assert str(caught.value) == (
        "log probabilities of prompts are not computed with tensor parallelism; expected a server "
        "without --tensor-parallel-size, or no echo."
    )
