"""A follower steps as it is ordered, and says when it has lost its way."""

from __future__ import annotations

from multiprocessing import Pipe

import pytest

from calumma.checkpoints.model_folder import ModelComponents
from calumma.errors import RankError
from calumma.generate.engine import Engine
from calumma.generate.model import Model
from calumma.generate.params import Request, TextSampling
from calumma.generate.tensor_parallel.worker import StepCommand, run_steps


@pytest.fixture
def engines(model_parts: ModelComponents) -> tuple[Engine, Engine]:
    """A leader's and a follower's, each with all of the decoder."""
    model = Model(model_parts)
    return model.new_engine(model.engine_config), model.new_engine(model.engine_config)


def request(seed: int) -> Request:
    rule = TextSampling(temperature=5.0, top_p=1.0)
    return Request(
        prompt_token_ids=(0, 30, 31), max_new_tokens=30, max_images=0, seed=seed, text=rule
    )


def test_it_takes_the_same_steps_and_drops_what_is_dropped(
    engines: tuple[Engine, Engine],
) -> None:
    leader, follower = engines
    ours, theirs = Pipe()
    states = [leader.submit(request(seed)) for seed in range(3)]
    asked = {number: request(number) for number in range(3)}
    chosen: list[int] = []
    for _ in range(6):
        ours.send(StepCommand(new_requests=asked, aborted=[], last_token_ids=chosen))
        asked, chosen = {}, [id_ for _, id_ in leader.step()]
    leader.abort(states[1])
    ours.send(StepCommand(new_requests={}, aborted=[1], last_token_ids=chosen))
    leader.step()
    ours.send(None)
    run_steps(theirs, follower)
    assert follower.stats == leader.stats
    assert follower.stats.num_running == 2


def test_other_ids_than_the_leaders_end_it(engines: tuple[Engine, Engine]) -> None:
    ours, theirs = Pipe()
    ours.send(StepCommand(new_requests={}, aborted=[], last_token_ids=[]))
    ours.send(StepCommand(new_requests={}, aborted=[], last_token_ids=[7]))
    with pytest.raises(RankError) as caught:
        run_steps(theirs, engines[1])
    assert str(caught.value) == (
        "it sampled the tokens [], rank 0 [7]; expected the same on all ranks. Give the ranks devices "
        "of one kind."
    )


def test_without_a_leader_it_ends(engines: tuple[Engine, Engine]) -> None:
    ours, theirs = Pipe()
    ours.close()
    with pytest.raises(EOFError):
        run_steps(theirs, engines[1])
