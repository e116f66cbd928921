"""Steps that are launched before the host knows what the last one drew: the same ids."""

from __future__ import annotations

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
from calumma.model.decoder import Decoder, LMHead
from calumma.model.kv_cache import KVCache, SequenceChunk
from tests.generate.test_engine_under_load import CODES, CONFIG, V, any_request


class Exact(nn.Module):
    """What it says behind an id follows from all ids that its row's slots of the cache hold.

    In whole numbers: nothing is rounded, whatever is read beside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config, self.ranks = CONFIG, 1
        self.embedding = nn.Embedding(V.size, CONFIG.model_dim)
        self.head = LMHead(CONFIG.model_dim, V.size, bias=False)
        generator = torch.Generator().manual_seed(0)
        whole = torch.randint(-2, 3, self.head.weight.shape, generator=generator)
        self.head.weight = nn.Parameter(whole.float())
        self.said = torch.randint(-1, 2, (997, CONFIG.model_dim), generator=generator).float()

    def hidden(self, ids: Tensor, cache: KVCache, pieces: Sequence[SequenceChunk]) -> Tensor:
        said: list[Tensor] = []
        for piece, new in zip(
            pieces, ids[0].split([p.num_new_tokens for p in pieces]), strict=True
        ):
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
        image = replace(asked[number].image, speculate=speculate)
        asked[number] = replace(asked[number], image=image)
    wanted = random.integers(1, 60, size=50)
    engine, works = exact(slots=300, rows=12, chunk=16, behind=behind), []
    while len(works) < 50 or not engine.is_idle:
        works += [engine.submit(request) for request in asked[len(works) : len(works) + 2]]
        engine.step()
        for work, most in zip(works, wanted, strict=False):
            if len(work.ids) >= most:
                engine.abort(work)
        assert engine.stats.num_reserved_tokens <= 300
    assert engine.stats.num_reserved_tokens == engine.stats.num_sequences == 0
    assert engine._kv_allocator.num_used == sum(
        row.num_computed_tokens for row in engine._prefix_cache
    )
    assert all(id_ >= 0 for row in engine._prefix_cache for id_ in row.token_ids)
    return works


@pytest.mark.parametrize("speculate", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_mixture_says_what_it_says_step_by_step(seed: int, speculate: int) -> None:
    found, wanted = (played(seed, speculate, behind=behind) for behind in (True, False))
    assert {work.finish_reason for work in wanted} == {"stop", "length", "cancelled"}
    assert [work.output_token_ids for work in found] == [work.output_token_ids for work in wanted]
    assert [work.logprobs for work in found] == [work.logprobs for work in wanted]
    assert [work.finish_reason for work in found] == [work.finish_reason for work in wanted]


@pytest.mark.parametrize("captured", [False, True])
def test_a_decoder_that_rounds_says_the_same(decoder: Decoder, captured: bool) -> None:
    random, vocabulary = np.random.default_rng(7), replace(V, num_text=300)
    asked = [any_request(random, number) for number in range(16)]
    works = []
    for behind in (True, False):
        budget = EngineConfig(
            max_num_seqs=24, prefill_chunk_size=16, cuda_graphs=captured, async_scheduling=behind
        )
        engine = Engine(decoder, vocabulary, CODES, config=budget)
        works.append(engine.submit_all(asked))
        list(engine.stream_tokens(works[-1]))
    for found, wanted in zip(*works, strict=True):
        assert found.ids == wanted.ids
        assert found.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


def logged(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the engine does from now on: reads, and looks at what was drawn."""
    log: list[str] = []
    read, told = ModelRunner.execute, StepOutput.get_output

    def tell(drawn: StepOutput) -> list[SampledTokens]:
        log.extend(["told"] * bool(drawn.requests))
        return told(drawn)

    monkeypatch.setattr(StepOutput, "told", tell)
    monkeypatch.setattr(ModelRunner, "read", lambda *args: (log.append("read"), read(*args))[1])
    return log


TEXT = Request(prompt_token_ids=(V.bos, V.text[0]), max_new_tokens=4, max_images=0)
IMAGE = Request(
    prompt_token_ids=(V.bos, V.text[0]), max_new_tokens=CODES + 2, modality="image", max_images=1
)


@pytest.mark.parametrize("request_", [TEXT, IMAGE])
def test_a_step_is_launched_before_the_last_one_is_looked_at(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = exact(behind=True)
    monkeypatch.setattr(engine.sampler.vocab_slices, "forbidden", never_ending(engine))
    log = logged(engine, monkeypatch)
    work = engine.submit(request_)
    begun = len(engine.step())
    assert (log, begun) == (["read"], int(request_ is IMAGE))
    assert engine.step()[0] == (work, work.output_token_ids[begun])
    engine.step()
    assert log[:5] == ["read", "read", "told", "read", "told"]
    # The last draw is known to be the last one: nothing is read behind it.
    while not engine.is_idle:
        engine.step()
    assert log[-2:] == ["told", "told"]
    assert log.count("read") == len(work.output_token_ids) - 2 * begun


def never_ending(engine: Engine) -> Tensor:
    """The table of what is forbidden, with end of sequence."""
    table = engine.sampler.vocab_slices.disallowed.clone()
    table[:, 0] = True
    return table


def test_guesses_are_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = exact(behind=True)
    log = logged(engine, monkeypatch)
    engine.submit(replace(IMAGE, image=ImageSampling(num_speculative_tokens=1)))
    engine.step()
    engine.step()
    assert log == ["read", "told", "read"]


def test_what_is_drawn_behind_a_wrong_supposition_is_nobody_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = exact(behind=True)
    columns = engine.sampler.vocab_slices
    picked = iter([V.text[1], V.begin_image, V.text[2], V.text[3], V.eos, V.text[4]])

    def of_text(hidden: Tensor) -> Tensor:
        return torch.where(columns.text_token_ids == next(picked), 9.0, 0.0).expand(len(hidden), -1)

    monkeypatch.setattr(columns, "of_text", of_text)
    asked = replace(TEXT, max_images=1, max_new_tokens=20, text=TextSampling(temperature=0.0))
    work = engine.submit(asked)
    list(engine.stream_tokens([work]))
    # Behind begin-of-image text 2 was drawn, and behind end of sequence text 4: for nothing.
    codes = [id_ for id_ in work.output_token_ids if id_ in V.codes]
    assert work.output_token_ids == [
        V.text[1],
        V.begin_image,
        *codes,
        V.end_image,
        V.text[3],
        V.eos,
    ]
    assert next(picked, None) is None
    assert (work.finish_reason, work.cond.num_computed_tokens) == (
        "stop",
        len(work.cond.token_ids) - 1,
    )
    seen = engine.sampler._seen[work.batch_slot, columns.token_to_column[list(V.text)]]
    assert seen.nonzero().flatten().tolist() == [0, 1, 3]


@pytest.mark.parametrize("captured", [False, True])
def test_a_launch_reads_nothing_back_from_the_device(
    captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tensors of the meta device have no values: whoever wants one fails.
    bare: Any = Exact().requires_grad_(False).to("meta")
    bare.hidden = lambda ids, **where: torch.empty(1, ids.shape[1], 4, device=ids.device)
    random = np.random.default_rng(3)

    def told(drawn: StepOutput) -> list[SampledTokens]:
        kinds = {work: work.grammar.next_kind for work in drawn.requests}
        likely = {
            TokenKind.TEXT: V.text[0],
            TokenKind.TEXT_OR_IMAGE: V.begin_image,
            TokenKind.IMAGE_CODE: 4,
        }
        return [(work, [likely.get(kind, V.eos)], [0.0]) for work, kind in kinds.items()]

    monkeypatch.setattr(StepOutput, "told", told)
    engine = Engine(
        bare, V, CODES, config=EngineConfig(async_scheduling=True, cuda_graphs=captured)
    )
    works = engine.submit_all([any_request(random, number) for number in range(10)])
    list(engine.stream_tokens(works))
    assert {id_ for work in works for id_ in work.output_token_ids} == {
        V.text[0], V.begin_image, 4, V.end_image, V.eos
    }  # fmt: skip


def test_a_cancelled_request_s_draw_is_nobody_s() -> None:
    engine = exact(behind=True, rows=1, keep_ended=False)
    asked = replace(TEXT, max_new_tokens=20, seed=5)
    first = engine.submit(asked)
    engine.step()
    engine.abort(first)
    assert (first.output_token_ids, engine.stats.num_reserved_tokens) == ([], 0)
    # Its seat and its slots are taken while its draw is still on the way.
    second = engine.submit(asked)
    list(engine.stream_tokens([second]))
    plain = exact(behind=False)
    alone = plain.submit(asked)
    list(plain.stream_tokens([alone]))
    assert (first.output_token_ids, second.output_token_ids, second.logprobs) == (
        [],
        alone.output_token_ids,
        alone.logprobs,
    )
