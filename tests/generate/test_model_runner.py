"""Forward calls over parts of sequences, prefix caching, and the plan of a step."""

import pytest
import torch

from calumma.generate.model_runner import ModelRunner, to_column_major
from calumma.generate.params import Request
from calumma.generate.request import RequestState
from calumma.generate.scheduler import MAX_DECODE_TOKENS, MIN_PREFIX_TOKENS, reuse_prefix, schedule_tokens
from calumma.generate.sequence_state import SequenceState
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.tokens.text import TextTokenizer


@pytest.fixture
def runner(decoder: Decoder) -> ModelRunner:
    return ModelRunner(decoder, 400, torch.zeros(9, dtype=torch.int64))


def sequence(length: int, start_slot: int, start: int = 40) -> SequenceState:
    return SequenceState(list(range(start, start + length)), start_slot=start_slot)


@torch.no_grad()
def reference(runner: ModelRunner, ids: list[int]) -> torch.Tensor:
    return runner.decoder(torch.tensor([ids]), head_fn=runner.decoder.norm)[0]


@torch.no_grad()
def test_chunks_compute_the_same_as_full_sequences(runner: ModelRunner) -> None:
    one, other = sequence(9, 50), sequence(5, 10, start=80)
    parts = [runner.execute([(one, 4), (other, 1)]), runner.execute([(one, 1), (other, 4)])]
    parts.append(runner.execute([(one, 4)]))
    assert torch.allclose(
        torch.cat([parts[0][:4], parts[1][:1], parts[2]]), reference(runner, one.token_ids), atol=1e-5
    )
    assert torch.allclose(torch.cat([parts[0][4:], parts[1][1:]]), reference(runner, other.token_ids), atol=1e-5)
    assert (one.num_computed_tokens, one.num_uncomputed_tokens) == (9, 0)


def test_frozen_matrices_become_column_major_and_keep_their_values(decoder_config: DecoderConfig) -> None:
    made = Decoder(decoder_config)
    made.init_weights(0)
    ids = torch.tensor([[5, 6, 7]])
    expected = made(ids)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    to_column_major(made)
    assert made.head.weight.is_contiguous()  # still trainable
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
def test_truncated_tokens_leave_no_trace(runner: ModelRunner) -> None:
    made = sequence(6, 3)
    runner.execute([(made, 6)])
    made.truncate(3)
    made.token_ids += [90, 91, 92, 93]
    assert torch.allclose(runner.execute([(made, 4)]), reference(runner, made.token_ids)[3:], atol=1e-5)


@torch.no_grad()
def test_a_cached_prefix_is_not_computed_again(runner: ModelRunner) -> None:
    first, short = sequence(MIN_PREFIX_TOKENS + 8, 0), sequence(MIN_PREFIX_TOKENS - 1, 100)
    same, longer = sequence(MIN_PREFIX_TOKENS + 8, 200), sequence(MIN_PREFIX_TOKENS + 12, 300)
    assert reuse_prefix(first, [], runner.kv_cache)
    assert not reuse_prefix(same, [first], runner.kv_cache)
    runner.execute([(first, MIN_PREFIX_TOKENS + 2)])
    assert not reuse_prefix(same, [first], runner.kv_cache)
    runner.execute([(first, 6)])
    for one, shared in ((short, 0), (same, MIN_PREFIX_TOKENS + 7), (longer, MIN_PREFIX_TOKENS + 8)):
        assert reuse_prefix(one, [short, first], runner.kv_cache)
        assert one.num_computed_tokens == shared
        rest = runner.execute([(one, one.num_uncomputed_tokens)])
        assert torch.allclose(rest, reference(runner, one.token_ids)[shared:], atol=1e-5)


def make_states(text_tokenizer: TextTokenizer, *lengths: int) -> list[RequestState]:
    """Return requests whose prompts share no prefix, each with its own slots."""
    made = []
    for number, length in enumerate(lengths):
        ids = (text_tokenizer.vocabulary.text[number], *range(40, 39 + length))
        made.append(RequestState.from_request(Request(prompt_token_ids=ids), text_tokenizer.vocabulary, 4, 128))
        made[-1].allocate(number * 100, number)
    return made


def test_long_prompts_are_chunked_and_decoding_is_not(runner: ModelRunner, text_tokenizer: TextTokenizer) -> None:
    all_states = make_states(text_tokenizer, 50, 30, MAX_DECODE_TOKENS)
    counts = []
    while left := [state for state in all_states if state.cond.num_uncomputed_tokens]:
        plan, ready = schedule_tokens(left, [], runner.kv_cache, 20)
        counts.append([count for _, count in plan])
        assert [state.cond for state in ready] == [one for one, n in plan if n == one.num_uncomputed_tokens]
        for one, count in plan:
            one.num_computed_tokens += count
    # 20 prompt tokens per step; the short prompt counts as decoding.
    assert counts == [[20, MAX_DECODE_TOKENS], [20], [10, 10], [20]]


def test_the_sequences_of_a_request_end_in_one_step(runner: ModelRunner, text_tokenizer: TextTokenizer) -> None:
    v = text_tokenizer.vocabulary
    image = [v.begin_image, 4, 5, 6, 7, v.end_image]
    ids = (v.bos, *v.text[:20], *image * 3, v.begin_image)
    state = RequestState.from_request(Request(prompt_token_ids=ids), v, 4, 128)
    state.allocate(0, 0)
    steps = []
    while any(one.num_uncomputed_tokens for one in state.sequences):
        plan, ready = schedule_tokens([state], [], runner.kv_cache, 16)
        assert bool(ready) == (len(plan) == 3 and all(n == one.num_uncomputed_tokens for one, n in plan))
        for one, count in plan:
            one.num_computed_tokens += count
        steps.append(sum(count for _, count in plan))
    assert max(steps) <= 16
    assert sum(steps) == len(ids) + 20 + 2


def test_an_equal_prompt_waits_for_the_prefix_being_computed(
    runner: ModelRunner, text_tokenizer: TextTokenizer
) -> None:
    (one, *_), (same, *_) = make_states(text_tokenizer, 60), make_states(text_tokenizer, 60)
    same.allocate(200, 1)
    steps = []
    for _ in range(3):
        plan, ready = schedule_tokens([one, same], [], runner.kv_cache, 40)
        steps.append(([count for _, count in plan], ready))
        with torch.no_grad():
            runner.execute(plan)
        for state in ready:
            state.cond.token_ids.append(30)
    assert steps == [([40], []), ([20], [one]), ([1, 1], [one, same])]
