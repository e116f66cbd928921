"""Decode steps as a GPU captures them, run on a CPU: equal to other steps."""

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from calumma.generate.cuda_graphs import CUDAGraphRunner, padded_batch_size
from calumma.generate.model_runner import ModelRunner
from calumma.generate.sequence_state import SequenceState
from calumma.model.decoder import Decoder


@pytest.fixture
def runner(decoder: Decoder) -> ModelRunner:
    return ModelRunner(decoder, 200, torch.zeros(9, dtype=torch.int64))


@pytest.mark.parametrize("count", [1, 3, 5])
@torch.no_grad()
def test_a_captured_step_computes_the_same(runner: ModelRunner, count: int) -> None:
    sequences = [SequenceState(list(range(40 + n, 60 + 2 * n)), start_slot=30 * n) for n in range(count)]
    runner.execute([(sequence, sequence.num_uncomputed_tokens - 3) for sequence in sequences])
    before = [sequence.num_computed_tokens for sequence in sequences]
    graphs = CUDAGraphRunner(runner.decoder, runner.kv_cache, runner.last_token_ids)
    found = torch.stack([graphs.execute(sequences) for _ in range(3)])
    assert [sequence.num_uncomputed_tokens for sequence in sequences] == [0] * count
    for sequence, length in zip(sequences, before, strict=True):
        sequence.num_computed_tokens = length
    expected = torch.stack([runner.execute([(sequence, 1) for sequence in sequences]) for _ in range(3)])
    assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_there_is_one_graph_for_each_batch_size(runner: ModelRunner) -> None:
    graphs = CUDAGraphRunner(runner.decoder, runner.kv_cache, runner.last_token_ids)
    sequences = [SequenceState([40, 41, 42], start_slot=10 * number) for number in range(6)]
    for count in (1, 2, 1, 5, 6):
        graphs.execute(sequences[:count])
        for sequence in sequences:
            sequence.truncate(sequence.num_computed_tokens)
            sequence.token_ids += [43, 44]
    assert list(graphs._steps) == [1, 2, 6]


def test_all_graphs_are_captured_before_the_first_request_and_the_largest_first(decoder: Decoder) -> None:
    runner = ModelRunner(decoder, 200, torch.zeros(24, dtype=torch.int64), cuda_graphs=True)
    runner.warm_up(24)
    assert runner._cuda_graphs is not None
    assert list(runner._cuda_graphs._steps) == [24, 16, 12, 8, 6, 4, 3, 2, 1]
    # Any batch of a served day has one of these sizes, whatever the lengths of its sequences.
    assert {padded_batch_size(count) for count in range(1, 25)} == set(runner._cuda_graphs._steps)
    assert len({padded_batch_size(count) for count in range(1, 65)}) == 12
    ModelRunner(decoder, 200, torch.zeros(24)).warm_up(24)


@torch.no_grad()
def test_padding_sequences_write_to_the_last_slot(runner: ModelRunner) -> None:
    sequences = [SequenceState([40], start_slot=10 * number) for number in range(5)]
    CUDAGraphRunner(runner.decoder, runner.kv_cache, runner.last_token_ids).execute(sequences)
    written = runner.kv_cache.keys[0, 0].abs().sum(-1).nonzero().flatten().tolist()
    assert written == [0, 10, 20, 30, 40, runner.kv_cache.num_slots - 1]


def test_cuda_graphs_have_a_slot_for_padding(decoder: Decoder) -> None:
    assert ModelRunner(decoder, 200, torch.zeros(9), cuda_graphs=True).kv_cache.num_slots > 200


class FakeGraph:
    """Stands for a CUDA graph; replays nothing."""

    pools: ClassVar[list[Any]] = []

    def replay(self) -> None: ...


def test_graphs_share_one_memory_pool(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(graph: FakeGraph, *, pool: object, capture_error_mode: str) -> AbstractContextManager[None]:
        FakeGraph.pools.append(pool)
        return nullcontext()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda other: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    graphs = CUDAGraphRunner(runner.decoder, runner.kv_cache, runner.last_token_ids)
    for number in range(3):
        replay = graphs._capture(lambda number=number: torch.tensor(number))
        assert replay() == number
    assert len(FakeGraph.pools) == 3
    assert len(set(FakeGraph.pools)) == 1
