"""Steps that are launched before the host knows what the last one drew: the same ids."""

from __future__ import annotations

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


class Exact(nn.Module):
    """What it says behind an id follows from all ids that its row's slots of the cache hold.

    In whole numbers: nothing is rounded, whatever is read beside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config, self.tp_size = CONFIG, 1
        self.embedding = nn.Embedding(V.size, CONFIG.model_dim)
        self.head = LMHead(CONFIG.model_dim, V.size, bias=False)
        generator = torch.Generator().manual_seed(0)
        whole = torch.randint(-2, 3, self.head.weight.shape, generator=generator)
        self.head.weight = nn.Parameter(whole.float())
        self.said = torch.randint(-1, 2, (997, CONFIG.model_dim), generator=generator).float()

    def hidden_states(self, token_ids: Tensor, metadata: AttentionMetadata) -> Tensor:
        assert isinstance(metadata.attention_fn, CachedAttention)
        chunks, cache = metadata.attention_fn.chunks, metadata.kv_cache
        assert cache is not None
        said: list[Tensor] = []
        counts = [chunk.num_new_tokens for chunk in chunks]
        for piece, new in zip(chunks, token_ids[0].split(counts), strict=True):
            line = cache.keys[0, 0, piece.start_slot : piece.start_slot + piece.seq_len, 0]
            line[piece.num_computed_tokens :] = new.float()
            mixed = ((line.long() + 1) * (torch.arange(piece.seq_len) * 31 + 7)).cumsum(0) % 997
            said.append(self.said[mixed[piece.num_computed_tokens :]])
        return torch.cat(said).unsqueeze(0)


def exact(**budget: Any) -> Engine:
    decoder: Any = Exact().requires_grad_(False)
    return Engine(decoder, V, CODES, config=EngineConfig(**budget))


def played(seed: int, speculate: int, *, behind: bool) -> list[RequestState]:
    """A random mixture of requests that come and are cancelled while others run."""
    random = np.random.default_rng(seed)
    asked = [any_request(random, number) for number in range(50)]
    for number in range(0, 50, 3):
        image = replace(asked[number].image, num_speculative_tokens=speculate)
        asked[number] = replace(asked[number], image=image)
    wanted = random.integers(1, 60, size=50)
    engine = exact(
        max_cached_tokens=300, max_num_seqs=12, prefill_chunk_size=16, async_scheduling=behind
    )
    states: list[RequestState] = []
    while len(states) < 50 or not engine.is_idle:
        states += [engine.submit(request) for request in asked[len(states) : len(states) + 2]]
        engine.step()
        for state, most in zip(states, wanted, strict=False):
            if len(state.output_token_ids) >= most:
                engine.abort(state)
        assert engine.stats.num_reserved_tokens <= 300
    assert engine.stats.num_reserved_tokens == engine.stats.num_sequences == 0
    assert engine.scheduler._allocator.num_used == sum(
        row.num_computed_tokens for row in engine.scheduler._prefix_cache
    )
    assert all(id_ >= 0 for row in engine.scheduler._prefix_cache for id_ in row.token_ids)
    return states


@pytest.mark.parametrize("speculate", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_mixture_says_what_it_says_step_by_step(seed: int, speculate: int) -> None:
    found, wanted = (played(seed, speculate, behind=behind) for behind in (True, False))
    assert {state.finish_reason for state in wanted} == {"stop", "length", "abort"}
    assert [state.output_token_ids for state in found] == [
        state.output_token_ids for state in wanted
    ]
    assert [state.logprobs for state in found] == [state.logprobs for state in wanted]
    assert [state.finish_reason for state in found] == [state.finish_reason for state in wanted]


@pytest.mark.parametrize("captured", [False, True])
def test_a_decoder_that_rounds_says_the_same(decoder: Decoder, captured: bool) -> None:
    random, vocabulary = np.random.default_rng(7), replace(V, num_text=300)
    asked = [any_request(random, number) for number in range(16)]
    states = []
    for behind in (True, False):
        budget = EngineConfig(
            max_num_seqs=24, prefill_chunk_size=16, cuda_graphs=captured, async_scheduling=behind
        )
        engine = Engine(decoder, vocabulary, CODES, config=budget)
        states.append(engine.submit_all(asked))
        list(engine.stream_tokens(states[-1]))
    for found, wanted in zip(*states, strict=True):
        assert found.output_token_ids == wanted.output_token_ids
        assert found.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


def logged(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the engine does from now on: reads, and looks at what was drawn."""
    log: list[str] = []
    read, told = ModelRunner.execute, StepOutput.get_output

    def tell(drawn: StepOutput) -> list[SampledTokens]:
        log.extend(["told"] * bool(drawn.requests))
        return told(drawn)

    monkeypatch.setattr(StepOutput, "get_output", tell)
    monkeypatch.setattr(ModelRunner, "execute", lambda *args: (log.append("read"), read(*args))[1])
    return log


TEXT = Request(prompt_token_ids=(V.bos, V.text[0]), max_new_tokens=4, max_images=0)
IMAGE = Request(
    prompt_token_ids=(V.bos, V.text[0]), max_new_tokens=CODES + 2, modality="image", max_images=1
)


@pytest.mark.parametrize("request_", [TEXT, IMAGE])
def test_a_step_is_launched_before_the_last_one_is_looked_at(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = exact(async_scheduling=True)
    monkeypatch.setattr(engine.sampler.vocab_slices, "disallowed", never_ending(engine))
    log = logged(engine, monkeypatch)
    state = engine.submit(request_)
    begun = len(engine.step())
    assert (log, begun) == (["read"], int(request_ is IMAGE))
    assert engine.step()[0] == (state, state.output_token_ids[begun])
    engine.step()
    assert log[:5] == ["read", "read", "told", "read", "told"]
    # The last draw is known to be the last one: nothing is read behind it.
    while not engine.is_idle:
        engine.step()
    assert log[-2:] == ["told", "told"]
    assert log.count("read") == len(state.output_token_ids) - 2 * begun


def never_ending(engine: Engine) -> Tensor:
    """The table of what is forbidden, with end of sequence."""
    table = engine.sampler.vocab_slices.disallowed.clone()
    table[:, 0] = True
    return table


def test_guesses_are_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = exact(async_scheduling=True)
    log = logged(engine, monkeypatch)
    engine.submit(replace(IMAGE, image=ImageSampling(num_speculative_tokens=1)))
    engine.step()
    engine.step()
    assert log == ["read", "told", "read"]


def test_what_is_drawn_behind_a_wrong_supposition_is_nobody_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = exact(async_scheduling=True)
    columns = engine.sampler.vocab_slices
    picked = iter([V.text[1], V.begin_image, V.text[2], V.text[3], V.eos, V.text[4]])

    def of_text(hidden: Tensor) -> Tensor:
        return torch.where(columns.text_token_ids == next(picked), 9.0, 0.0).expand(len(hidden), -1)

    monkeypatch.setattr(columns, "text_logits", of_text)
    asked = replace(TEXT, max_images=1, max_new_tokens=20, text=TextSampling(temperature=0.0))
    state = engine.submit(asked)
    list(engine.stream_tokens([state]))
    # Behind begin-of-image text 2 was drawn, and behind end of sequence text 4: for nothing.
    codes = [id_ for id_ in state.output_token_ids if id_ in V.codes]
    assert state.output_token_ids == [
        V.text[1],
        V.begin_image,
        *codes,
        V.end_image,
        V.text[3],
        V.eos,
    ]
    assert next(picked, None) is None
    assert (state.finish_reason, state.cond.num_computed_tokens) == (
        "stop",
        len(state.cond.token_ids) - 1,
    )
    seen = engine.sampler._seen[state.batch_slot, columns.token_to_column[list(V.text)]]
    assert seen.nonzero().flatten().tolist() == [0, 1, 3]


@pytest.mark.parametrize("captured", [False, True])
def test_a_launch_reads_nothing_back_from_the_device(
    captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tensors of the meta device have no values: whoever wants one fails.
    bare: Any = Exact().requires_grad_(False).to("meta")
    bare.hidden_states = lambda ids, metadata: torch.empty(1, ids.shape[1], 4, device=ids.device)
    random = np.random.default_rng(3)

    def told(drawn: StepOutput) -> list[SampledTokens]:
        kinds = {state: state.grammar.next_kind for state in drawn.requests}
        likely = {
            TokenKind.TEXT: V.text[0],
            TokenKind.TEXT_OR_IMAGE: V.begin_image,
            TokenKind.IMAGE_CODE: 4,
        }
        return [
            SampledTokens(state, [likely.get(kind, V.eos)], [0.0]) for state, kind in kinds.items()
        ]

    monkeypatch.setattr(StepOutput, "get_output", told)
    engine = Engine(
        bare, V, CODES, config=EngineConfig(async_scheduling=True, cuda_graphs=captured)
    )
    states = engine.submit_all([any_request(random, number) for number in range(10)])
    list(engine.stream_tokens(states))
    assert {id_ for state in states for id_ in state.output_token_ids} == {
        V.text[0], V.begin_image, 4, V.end_image, V.eos
    }  # fmt: skip


def test_a_cancelled_request_s_draw_is_nobody_s() -> None:
    engine = exact(async_scheduling=True, max_num_seqs=1, enable_prefix_caching=False)
    asked = replace(TEXT, max_new_tokens=20, seed=5)
    first = engine.submit(asked)
    engine.step()
    engine.abort(first)
    assert (first.output_token_ids, engine.stats.num_reserved_tokens) == ([], 0)
    # Its seat and its slots are taken while its draw is still on the way.
    second = engine.submit(asked)
    list(engine.stream_tokens([second]))
    plain = exact(async_scheduling=False)
    alone = plain.submit(asked)
    list(plain.stream_tokens([alone]))
    assert (first.output_token_ids, second.output_token_ids, second.logprobs) == (
        [],
        alone.output_token_ids,
        alone.logprobs,
    )
