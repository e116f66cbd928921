"""A worker repeats rank 0's steps and reports when it is out of sync."""

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
    """Engines of rank 0 and of a worker, each with the full decoder."""
    model = Model(model_parts)
    return model.new_engine(model.engine_config), model.new_engine(model.engine_config)


def request(seed: int) -> Request:
    sampling = TextSampling(temperature=5.0, top_p=1.0)
    return Request(prompt_token_ids=(0, 30, 31), max_new_tokens=30, max_images=0, seed=seed, text=sampling)


def test_a_worker_takes_the_same_steps_and_aborts_what_is_aborted(engines: tuple[Engine, Engine]) -> None:
    rank_zero, worker = engines
    pipe, worker_pipe = Pipe()
    states = [rank_zero.submit(request(seed)) for seed in range(3)]
    requests = {number: request(number) for number in range(3)}
    token_ids: list[int] = []
    for _ in range(6):
        pipe.send(StepCommand(new_requests=requests, aborted=[], last_token_ids=token_ids))
        requests, token_ids = {}, [id_ for _, id_ in rank_zero.step()]
    rank_zero.abort(states[1])
    pipe.send(StepCommand(new_requests={}, aborted=[1], last_token_ids=token_ids))
    rank_zero.step()
    pipe.send(None)
    run_steps(worker_pipe, worker)
    assert worker.stats == rank_zero.stats
    assert worker.stats.num_running == 2


def test_other_tokens_than_rank_zero_end_a_worker(engines: tuple[Engine, Engine]) -> None:
    pipe, worker_pipe = Pipe()
    pipe.send(StepCommand(new_requests={}, aborted=[], last_token_ids=[]))
    pipe.send(StepCommand(new_requests={}, aborted=[], last_token_ids=[7]))
    with pytest.raises(RankError) as caught:
        run_steps(worker_pipe, engines[1])
    assert str(caught.value) == (
        "it sampled the tokens [], rank 0 [7]; expected the same on all ranks. Give the ranks devices of one kind."
    )


def test_a_worker_ends_without_rank_zero(engines: tuple[Engine, Engine]) -> None:
    pipe, worker_pipe = Pipe()
    pipe.close()
    with pytest.raises(EOFError):
        run_steps(worker_pipe, engines[1])
