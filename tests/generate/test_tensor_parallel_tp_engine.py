"""Two processes hold a model together, and answer as one that holds it alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
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
from calumma.generate.tensor_parallel.tp_engine import TensorParallelAsyncEngine
from tests.generate.leading import lead
from tests.launch import SERVER

WILD = TextSampling(temperature=5.0, top_p=1.0)
IMAGES = (
    ImageSampling(temperature=1.0, top_p=1.0),
    ImageSampling(temperature=1.0, top_p=1.0, guidance_scale=1.0, image_guidance_scale=1.0),
    ImageSampling(
        temperature=1.0,
        top_p=1.0,
        guidance_scale=2.0,
        image_guidance_scale=2.0,
        num_speculative_tokens=2,
    ),
)
"""Three rows, one row, two rows and guesses."""


@pytest.fixture(scope="module")
def folder(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shared") / "tiny"
    save_model(made, model_parts)
    return made


@pytest.fixture(scope="module")
def alone(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


def follower_of() -> int:
    (process,) = multiprocessing.active_children()
    assert process.name == "calumma-rank-1"
    assert process.pid is not None
    return process.pid


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[TensorParallelAsyncEngine]:
    budget = EngineConfig(max_num_seqs=12, max_cached_tokens=1500, prefill_chunk_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "SPAWN_CONTEXT", SERVER)
        with TensorParallelAsyncEngine(folder, 2, device="cpu", config=budget) as made:
            yield made
    assert multiprocessing.active_children() == []


def mixed(model: Model) -> list[Request]:
    """Text, pictures, guidance of every kind; prompts of one row and of several steps."""
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


def ids_of(model: Model, requests: list[Request]) -> list[list[int]]:
    states = model.engine.submit_all(requests)
    for _ in model.engine.stream_tokens(states):
        pass
    return [state.output_token_ids for state in states]


def test_a_mixed_bunch_of_requests_has_the_ids_of_the_model_alone(
    live: TensorParallelAsyncEngine, alone: Model
) -> None:
    requests = mixed(alone)
    answers = [live.submit(request) for request in requests]
    expected = ids_of(alone, requests)
    assert [answer.sample().token_ids for answer in answers] == expected
    assert any(id_ in alone.vocabulary.codes for ids in expected for id_ in ids)


def test_answers_cancelled_at_random_leave_the_others_as_they_were(
    live: TensorParallelAsyncEngine, alone: Model
) -> None:
    requests = mixed(alone)
    expected = ids_of(alone, requests)
    random = np.random.default_rng(0)
    others: list[tuple[int, RequestOutputStream]] = []
    for _ in range(20):
        victim, other = (int(number) for number in random.integers(12, size=2))
        cancelled = live.submit(requests[victim])
        others.append((other, live.submit(requests[other])))
        for _ in zip(range(int(random.integers(4))), cancelled, strict=False):
            pass
        cancelled.abort()
        ids = cancelled.sample().token_ids
        assert ids == expected[victim][: len(ids)]
    assert all(answer.sample().token_ids == expected[number] for number, answer in others)


def test_each_rank_holds_half_of_the_blocks_and_nothing_while_idle_costs_time(
    live: TensorParallelAsyncEngine, alone: Model
) -> None:
    ours, whole = (
        sum(parameter.numel() for parameter in model.decoder.blocks.parameters())
        for model in (live.model, alone)
    )
    assert whole / 2 <= ours < 0.52 * whole
    stat = Path(f"/proc/{follower_of()}/stat")
    if stat.exists():
        assert stat.read_text().rpartition(")")[2].split()[0] == "S"


def test_a_second_engine_and_a_second_group_are_refused(
    live: TensorParallelAsyncEngine, folder: Path
) -> None:
    with pytest.raises(GenerationError) as caught:
        live.model.generate(["a"])
    assert str(caught.value) == (
        "a tensor-parallel decoder has one engine, and it exists already; expected no second one. "
        "Use the first one."
    )
    with pytest.raises(GenerationError) as caught:
        TensorParallelAsyncEngine(folder, 2, device="cpu")
    assert str(caught.value) == (
        "this process is in a group of 2 ranks; expected one that is in none. Close its model, or "
        "start another process."
    )


def test_at_last_a_follower_that_is_killed_ends_all_answers_with_the_reason(
    live: TensorParallelAsyncEngine, alone: Model
) -> None:
    told: list[RankError] = []
    live.worker_group.on_failure(told.append)
    long = alone.request(["a"], max_new_tokens=100, text=WILD, max_images=0, seed=1)
    answers = [live.submit(long) for _ in range(3)]
    next(iter(answers[0]))
    os.kill(follower_of(), signal.SIGKILL)
    for answer in answers:
        with pytest.raises(RankError) as caught:
            answer.sample()
    expected = (
        "rank 1 of 2 has exited (SIGKILL); expected all of them, for each holds a shard of the "
        "decoder. See its output before this line, and start again."
    )
    assert str(caught.value) == str(live.error) == expected
    with pytest.raises(RankError):
        live.submit(long)
    live.worker_group.on_failure(told.append)
    assert {str(error) for error in told} == {expected}


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for somebody to take note of its end."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_signals_leave_a_follower_at_work_and_a_leader_that_is_killed_takes_it_along(
    folder: Path, alone: Model
) -> None:
    ours, theirs = SERVER.Pipe()
    leader = SERVER.Process(target=lead, args=(folder, theirs))
    leader.start()
    (follower,) = ours.recv()
    # Those of Ctrl-C and of services, which reach all processes: it is the leader who finishes.
    os.kill(follower, signal.SIGINT)
    os.kill(follower, signal.SIGTERM)
    ours.send(None)
    assert ours.recv() == alone.generate(["a"], max_new_tokens=2).token_ids
    assert not has_ended(follower)
    leader.kill()
    leader.join()
    for _ in range(200):
        if has_ended(follower):
            return
        time.sleep(0.05)
    raise AssertionError("the follower goes on without its leader")
