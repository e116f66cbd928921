"""The step that a GPU captures, computed on a CPU: the same as the one that is not."""

from __future__ import annotations

import pytest
import torch

from calumma.generate.cuda_graphs import CONTEXT_LENGTH_MULTIPLE, CUDAGraphRunner
from calumma.generate.model_runner import ModelRunner
from calumma.generate.request import SequenceState
from calumma.model.decoder import Decoder


@pytest.fixture
def reader(decoder: Decoder) -> ModelRunner:
    return ModelRunner(decoder, 200, torch.zeros(9, dtype=torch.int64))


@pytest.mark.parametrize("count", [1, 3, 5])
@torch.no_grad()
def test_a_captured_step_is_a_step(reader: ModelRunner, count: int) -> None:
    rows = [SequenceState(list(range(40 + n, 60 + 2 * n)), start_slot=30 * n) for n in range(count)]
    reader.execute([(row, row.num_uncomputed_tokens - 3) for row in rows])
    before = [row.num_computed_tokens for row in rows]
    captured = CUDAGraphRunner(reader.decoder, reader.kv_cache, reader.last_token_ids)
    found = torch.stack([captured.execute(rows) for _ in range(3)])
    assert [row.num_uncomputed_tokens for row in rows] == [0] * count
    for row, length in zip(rows, before, strict=True):
        row.num_computed_tokens = length
    expected = torch.stack([reader.execute([(row, 1) for row in rows]) for _ in range(3)])
    assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_there_is_one_step_for_each_size(reader: ModelRunner) -> None:
    captured = CUDAGraphRunner(reader.decoder, reader.kv_cache, reader.last_token_ids)
    rows = [SequenceState([40, 41, 42], start_slot=10 * number) for number in range(6)]
    for count in (1, 2, 1, 5, 6):
        captured.execute(rows[:count])
        for row in rows:
            row.truncate(row.num_computed_tokens)
            row.token_ids += [43, 44]
    assert set(captured._steps) == {
        (1, CONTEXT_LENGTH_MULTIPLE),
        (2, CONTEXT_LENGTH_MULTIPLE),
        (6, CONTEXT_LENGTH_MULTIPLE),
    }


@torch.no_grad()
def test_rows_that_fill_up_a_step_write_to_the_last_slot_alone(reader: ModelRunner) -> None:
    rows = [SequenceState([40], start_slot=10 * number) for number in range(5)]
    CUDAGraphRunner(reader.decoder, reader.kv_cache, reader.last_token_ids).execute(rows)
    written = reader.kv_cache.keys[0, 0].abs().sum(-1).nonzero().flatten().tolist()
    assert written == [0, 10, 20, 30, 40, reader.kv_cache.num_slots - 1]


def test_a_reader_that_captures_has_a_slot_of_nobody(decoder: Decoder) -> None:
    assert ModelRunner(decoder, 200, torch.zeros(9), cuda_graphs=True).kv_cache.num_slots > 200
