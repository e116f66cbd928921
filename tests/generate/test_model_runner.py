"""Reading rows in pieces, sharing what is equal, and the plan of a step."""

from __future__ import annotations

import pytest
import torch

from calumma.generate.model_runner import ModelRunner, to_column_major
from calumma.generate.params import Request
from calumma.generate.request import RequestState, SequenceState
from calumma.generate.scheduler import (
    MAX_DECODE_TOKENS,
    MIN_PREFIX_TOKENS,
    reuse_prefix,
    schedule_tokens,
)
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.text import TextTokenizer


@pytest.fixture
def reader(decoder: Decoder) -> ModelRunner:
    return ModelRunner(decoder, 400, torch.zeros(9, dtype=torch.int64))


def row(length: int, first: int, start: int = 40) -> SequenceState:
    return SequenceState(list(range(start, start + length)), start_slot=first)


@torch.no_grad()
def whole(reader: ModelRunner, ids: list[int]) -> torch.Tensor:
    return reader.decoder(torch.tensor([ids]), head_fn=reader.decoder.norm)[0]


@torch.no_grad()
def test_rows_in_pieces_are_rows_at_once(reader: ModelRunner) -> None:
    one, other = row(9, 50), row(5, 10, start=80)
    parts = [reader.execute([(one, 4), (other, 1)]), reader.execute([(one, 1), (other, 4)])]
    parts.append(reader.execute([(one, 4)]))
    assert torch.allclose(
        torch.cat([parts[0][:4], parts[1][:1], parts[2]]), whole(reader, one.token_ids), atol=1e-5
    )
    assert torch.allclose(
        torch.cat([parts[0][4:], parts[1][1:]]), whole(reader, other.token_ids), atol=1e-5
    )
    assert (one.num_computed_tokens, one.num_uncomputed_tokens) == (9, 0)


def test_matrices_that_nobody_trains_are_laid_by_columns_and_keep_their_values(
    decoder_config: DecoderConfig,
) -> None:
    made = Decoder(decoder_config)
    made.init_weights(0)
    ids = torch.tensor([[5, 6, 7]])
    expected = made(ids)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    to_column_major(made)
    assert made.head.weight.is_contiguous()  # it may be trained still
    to_column_major(made.requires_grad_(False))
    assert made.head.weight.t().is_contiguous()
    assert made.blocks[0].feed_forward.up.weight.t().is_contiguous()
    assert made.embedding.weight.is_contiguous()
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
    torch.testing.assert_close(made(ids), expected, atol=1e-5, rtol=1e-4)
    pointer = made.head.weight.data_ptr()
    to_column_major(made)
    assert made.head.weight.data_ptr() == pointer


@torch.no_grad()
def test_ids_that_are_dropped_leave_no_trace(reader: ModelRunner) -> None:
    made = row(6, 3)
    reader.execute([(made, 6)])
    made.truncate(3)
    made.token_ids += [90, 91, 92, 93]
    assert torch.allclose(reader.execute([(made, 4)]), whole(reader, made.token_ids)[3:], atol=1e-5)


@torch.no_grad()
def test_a_beginning_that_was_read_is_not_read_again(reader: ModelRunner) -> None:
    first, short = row(MIN_PREFIX_TOKENS + 8, 0), row(MIN_PREFIX_TOKENS - 1, 100)
    same, longer = row(MIN_PREFIX_TOKENS + 8, 200), row(MIN_PREFIX_TOKENS + 12, 300)
    assert reuse_prefix(first, [], reader.kv_cache)
    assert not reuse_prefix(same, [first], reader.kv_cache)
    reader.execute([(first, MIN_PREFIX_TOKENS + 2)])
    assert not reuse_prefix(same, [first], reader.kv_cache)
    reader.execute([(first, 6)])
    for one, shared in ((short, 0), (same, MIN_PREFIX_TOKENS + 7), (longer, MIN_PREFIX_TOKENS + 8)):
        assert reuse_prefix(one, [short, first], reader.kv_cache)
        assert one.num_computed_tokens == shared
        rest = reader.execute([(one, one.num_uncomputed_tokens)])
        assert torch.allclose(rest, whole(reader, one.token_ids)[shared:], atol=1e-5)


def states(text_tokenizer: TextTokenizer, *lengths: int) -> list[RequestState]:
    """Prompts that begin unlike each other, each with slots of its own."""
    made = []
    for number, length in enumerate(lengths):
        ids = (text_tokenizer.vocabulary.text[number], *range(40, 39 + length))
        made.append(
            RequestState.from_request(
                Request(prompt_token_ids=ids), text_tokenizer.vocabulary, 4, 128
            )
        )
        made[-1].allocate(number * 100, number)
    return made


def test_long_prompts_wait_and_those_that_decode_do_not(
    reader: ModelRunner, text_tokenizer: TextTokenizer
) -> None:
    all_works = states(text_tokenizer, 50, 30, MAX_DECODE_TOKENS)
    counts = []
    while left := [state for state in all_works if state.cond.num_uncomputed_tokens]:
        plan, ready = schedule_tokens(left, [], reader.kv_cache, 20)
        counts.append([count for _, count in plan])
        assert [state.cond for state in ready] == [
            row for row, n in plan if n == row.num_uncomputed_tokens
        ]
        for row, count in plan:
            row.num_computed_tokens += count
    # 20 ids of prompts a step; the short one is read at once beside them.
    assert counts == [[20, MAX_DECODE_TOKENS], [20], [10, 10], [20]]


def test_a_request_s_rows_end_in_one_step(
    reader: ModelRunner, text_tokenizer: TextTokenizer
) -> None:
    v = text_tokenizer.vocabulary
    image = [v.begin_image, 4, 5, 6, 7, v.end_image]
    ids = (v.bos, *v.text[:20], *image * 3, v.begin_image)
    state = RequestState.from_request(Request(prompt_token_ids=ids), v, 4, 128)
    state.allocate(0, 0)
    steps = []
    while any(one.num_uncomputed_tokens for one in state.sequences):
        plan, ready = schedule_tokens([state], [], reader.kv_cache, 16)
        assert bool(ready) == (
            len(plan) == 3 and all(n == one.num_uncomputed_tokens for one, n in plan)
        )
        for one, count in plan:
            one.num_computed_tokens += count
        steps.append(sum(count for _, count in plan))
    assert max(steps) <= 16
    assert sum(steps) == len(ids) + 20 + 2


def test_a_copy_of_a_request_waits_for_what_is_being_read(
    reader: ModelRunner, text_tokenizer: TextTokenizer
) -> None:
    (one, *_), (same, *_) = states(text_tokenizer, 60), states(text_tokenizer, 60)
    same.allocate(200, 1)
    steps = []
    for _ in range(3):
        plan, ready = schedule_tokens([one, same], [], reader.kv_cache, 40)
        steps.append(([count for _, count in plan], ready))
        with torch.no_grad():
            reader.execute(plan)
        for state in ready:
            state.cond.token_ids.append(30)
    assert steps == [([40], []), ([20], [one]), ([1, 1], [one, same])]
