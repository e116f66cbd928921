"""Async scheduling: the same tokens, although steps are launched before the last one is known."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calumma.generate.engine import Engine
from calumma.generate.grammar import TokenKind
from calumma.generate.model_runner import ModelRunner
from calumma.generate.params import EngineConfig, ImageSampling, Request, TextSampling
from calumma.generate.request import RequestState
from calumma.generate.step_output import SampledTokens, StepOutput
from calumma.model.attention_backends import AttentionMetadata, CachedAttention
from calumma.model.decoder import Decoder, LMHead
from tests.generate.test_engine_under_load import CODES, CONFIG, V, any_request


class ExactDecoder(nn.Module):
    """A decoder whose hidden states are a hash of the tokens in the sequence's cache slots.

    In integers: nothing is rounded, whatever the rest of the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config, self.tp_size, self.downward_head = CONFIG, 1, None
        self.embedding = nn.Embedding(V.size, CONFIG.model_dim)
        self.head = LMHead(CONFIG.model_dim, V.size, bias=False)
        generator = torch.Generator().manual_seed(0)
        weights = torch.randint(-2, 3, self.head.weight.shape, generator=generator)
        self.head.weight = nn.Parameter(weights.float())
        self.table = torch.randint(-1, 2, (997, CONFIG.model_dim), generator=generator).float()

    def hidden_states(self, token_ids: Tensor, metadata: AttentionMetadata) -> Tensor:
        assert isinstance(metadata.attention_fn, CachedAttention)
        chunks, cache = metadata.attention_fn.chunks, metadata.kv_cache
        assert cache is not None
        hidden: list[Tensor] = []
        counts = [chunk.num_new_tokens for chunk in chunks]
        for chunk, new in zip(chunks, token_ids[0].split(counts), strict=True):
            slots = cache.keys[0, 0, chunk.start_slot : chunk.start_slot + chunk.seq_len, 0]
            slots[chunk.num_computed_tokens :] = new.float()
            hashes = ((slots.long() + 1) * (torch.arange(chunk.seq_len) * 31 + 7)).cumsum(0) % 997
            hidden.append(self.table[hashes[chunk.num_computed_tokens :]])
        return torch.cat(hidden).unsqueeze(0)


def exact_engine(**config: Any) -> Engine:
    decoder: Any = ExactDecoder().requires_grad_(False)
    return Engine(decoder, V, CODES, config=EngineConfig(**config))


def play(seed: int, num_drafts: int, *, asynchronous: bool) -> list[RequestState]:
    """Run a random mixture of requests, submitted and aborted while others run."""
    random = np.random.default_rng(seed)
    requests = [any_request(random, number) for number in range(50)]
    for number in range(0, 50, 3):
        image = replace(requests[number].image, num_speculative_tokens=num_drafts)
        requests[number] = replace(requests[number], image=image)
    limits = random.integers(1, 60, size=50)
    engine = exact_engine(max_cached_tokens=300, max_num_seqs=12, prefill_chunk_size=16, async_scheduling=asynchronous)
    states: list[RequestState] = []
    while len(states) < 50 or not engine.is_idle:
        states += [engine.submit(request) for request in requests[len(states) : len(states) + 2]]
        engine.step()
        for state, limit in zip(states, limits, strict=False):
            if len(state.output_token_ids) >= limit:
                engine.abort(state)
        assert engine.stats.num_reserved_tokens <= 300
    assert engine.stats.num_reserved_tokens == engine.stats.num_sequences == 0
    assert engine.scheduler._allocator.num_used == sum(
        row.num_computed_tokens for row in engine.scheduler._prefix_cache
    )
    assert all(id_ >= 0 for row in engine.scheduler._prefix_cache for id_ in row.token_ids)
    return states


@pytest.mark.parametrize("num_drafts", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_mixture_gets_the_tokens_of_synchronous_steps(seed: int, num_drafts: int) -> None:
    found, expected = (play(seed, num_drafts, asynchronous=asynchronous) for asynchronous in (True, False))
    assert {state.finish_reason for state in expected} == {"stop", "length", "abort"}
    assert [state.output_token_ids for state in found] == [state.output_token_ids for state in expected]
    assert [state.logprobs for state in found] == [state.logprobs for state in expected]
    assert [state.finish_reason for state in found] == [state.finish_reason for state in expected]


@pytest.mark.parametrize("captured", [False, True])
def test_a_real_decoder_generates_the_same_tokens(decoder: Decoder, captured: bool) -> None:
    random, vocabulary = np.random.default_rng(7), replace(V, num_text=300)
    requests = [any_request(random, number) for number in range(16)]
    states = []
    for asynchronous in (True, False):
        config = EngineConfig(
            max_num_seqs=24, prefill_chunk_size=16, cuda_graphs=captured, async_scheduling=asynchronous
        )
        engine = Engine(decoder, vocabulary, CODES, config=config)
        states.append(engine.submit_all(requests))
        list(engine.stream_tokens(states[-1]))
    for found, expected in zip(*states, strict=True):
        assert found.output_token_ids == expected.output_token_ids
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def logged(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record when the engine computes a step and when it waits for the output of one."""
    log: list[str] = []
    execute, get_output = ModelRunner.execute, StepOutput.get_output

    def record(output: StepOutput) -> list[SampledTokens]:
        log.extend(["output"] * bool(output.requests))
        return get_output(output)

    monkeypatch.setattr(StepOutput, "get_output", record)
    monkeypatch.setattr(ModelRunner, "execute", lambda *args: (log.append("execute"), execute(*args))[1])
    return log


TEXT = Request(prompt_token_ids=(V.bos, V.text[0]), max_new_tokens=4, max_images=0)
IMAGE = Request(prompt_token_ids=(V.bos, V.text[0]), max_new_tokens=CODES + 2, modality="image", max_images=1)


@pytest.mark.parametrize("request_", [TEXT, IMAGE])
def test_a_step_is_launched_before_the_output_of_the_last_one(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = exact_engine(async_scheduling=True)
    monkeypatch.setattr(engine.sampler.vocab_slices, "disallowed", never_ending(engine))
    log = logged(engine, monkeypatch)
    state = engine.submit(request_)
    num_forced = len(engine.step())
    assert (log, num_forced) == (["execute"], int(request_ is IMAGE))
    assert engine.step()[0] == (state, state.output_token_ids[num_forced])
    engine.step()
    assert log[:5] == ["execute", "execute", "output", "execute", "output"]
    # The length limit is known: nothing is computed after the last token.
    while not engine.is_idle:
        engine.step()
    assert log[-2:] == ["output", "output"]
    assert log.count("execute") == len(state.output_token_ids) - 2 * num_forced


def never_ending(engine: Engine) -> Tensor:
    """Return the table of disallowed slices with end-of-sequence disallowed too."""
    table = engine.sampler.vocab_slices.disallowed.clone()
    table[:, 0] = True
    return table


def test_drafts_need_the_output_of_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = exact_engine(async_scheduling=True)
    log = logged(engine, monkeypatch)
    engine.submit(replace(IMAGE, image=ImageSampling(num_speculative_tokens=1)))
    engine.step()
    engine.step()
    assert log == ["execute", "output", "execute"]


def test_a_sample_after_a_misprediction_is_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = exact_engine(async_scheduling=True)
    slices = engine.sampler.vocab_slices
    picked = iter([V.text[1], V.begin_image, V.text[2], V.text[3], V.eos, V.text[4]])

    def text_logits(hidden: Tensor, adapters: Sequence[str]) -> Tensor:
        return torch.where(slices.text_token_ids == next(picked), 9.0, 0.0).expand(len(hidden), -1)

    monkeypatch.setattr(slices, "text_logits", text_logits)
    request = replace(TEXT, max_images=1, max_new_tokens=20, text=TextSampling(temperature=0.0))
    state = engine.submit(request)
    list(engine.stream_tokens([state]))
    # The samples text 2 after begin-of-image and text 4 after end-of-sequence are discarded.
    codes = [id_ for id_ in state.output_token_ids if id_ in V.codes]
    assert state.output_token_ids == [V.text[1], V.begin_image, *codes, V.end_image, V.text[3], V.eos]
    assert next(picked, None) is None
    assert (state.finish_reason, state.cond.num_computed_tokens) == ("stop", len(state.cond.token_ids) - 1)
    seen = engine.sampler._seen[state.batch_slot, slices.token_to_column[list(V.text)]]
    assert seen.nonzero().flatten().tolist() == [0, 1, 3]


@pytest.mark.parametrize("captured", [False, True])
def test_a_launch_copies_nothing_back_from_the_device(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tensors of the meta device have no values: reading one fails.
    bare: Any = ExactDecoder().requires_grad_(False).to("meta")
    bare.hidden_states = lambda ids, metadata: torch.empty(1, ids.shape[1], 4, device=ids.device)
    random = np.random.default_rng(3)

    def get_output(output: StepOutput) -> list[SampledTokens]:
        kinds = {state: state.grammar.next_kind for state in output.requests}
        likely = {TokenKind.TEXT: V.text[0], TokenKind.TEXT_OR_IMAGE: V.begin_image, TokenKind.IMAGE_CODE: 4}
        return [SampledTokens(state, [likely.get(kind, V.eos)], [0.0], [{}]) for state, kind in kinds.items()]

    monkeypatch.setattr(StepOutput, "get_output", get_output)
    engine = Engine(bare, V, CODES, config=EngineConfig(async_scheduling=True, cuda_graphs=captured))
    states = engine.submit_all([any_request(random, number) for number in range(10)])
    list(engine.stream_tokens(states))
    assert {id_ for state in states for id_ in state.output_token_ids} == {
        V.text[0], V.begin_image, 4, V.end_image, V.eos
    }  # fmt: skip


def test_the_sample_of_an_aborted_request_is_discarded() -> None:
    engine = exact_engine(async_scheduling=True, max_num_seqs=1, enable_prefix_caching=False)
    request = replace(TEXT, max_new_tokens=20, seed=5)
    first = engine.submit(request)
    engine.step()
    engine.abort(first)
    assert (first.output_token_ids, engine.stats.num_reserved_tokens) == ([], 0)
    # Its batch slot and its cache slots are reused while its sample is in flight.
    second = engine.submit(request)
    list(engine.stream_tokens([second]))
    plain = exact_engine(async_scheduling=False)
    alone = plain.submit(request)
    list(plain.stream_tokens([alone]))
    assert (first.output_token_ids, second.output_token_ids, second.logprobs) == (
        [],
        alone.output_token_ids,
        alone.logprobs,
    )
