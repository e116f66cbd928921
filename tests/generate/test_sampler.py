"""Choosing for many requests at once: groups, guidance, what was seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from calumma.generate.grammar import Next
from calumma.generate.params import ImageSampling, Request, TextSampling
from calumma.generate.request import RequestState, SequenceState, build_request_state
from calumma.generate.sampler import Chooser
from calumma.model.decoder import Decoder
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary

GREEDY = {"text": TextSampling(temperature=0.0, repetition_penalty=1.0)}


@pytest.fixture
def v(text_tokenizer: TextTokenizer) -> Vocabulary:
    return text_tokenizer.vocabulary


@pytest.fixture
def chooser(decoder: Decoder, v: Vocabulary) -> Chooser:
    return Chooser(decoder, v, seats=4)


def seated(
    chooser: Chooser, v: Vocabulary, *ids: int, seat: int = 0, **options: Any
) -> RequestState:
    made = build_request_state(Request(prompt_token_ids=(0, *ids), **options), v, 4, 128)
    made.allocate(0, seat)
    chooser.seat(made)
    return made


@torch.no_grad()
def test_each_kind_is_chosen_among_its_own(
    chooser: Chooser, decoder: Decoder, v: Vocabulary
) -> None:
    image = ImageSampling(temperature=0.0, guidance_scale=2.0)
    writes = seated(chooser, v, 40, seat=0, **GREEDY)
    draws = seated(chooser, v, 41, v.begin_image, seat=1, image=image)
    ends = seated(chooser, v, 42, seat=2, modality="text", **GREEDY)
    rows = [*writes.sequences, *draws.sequences, *ends.sequences]
    hidden = torch.randn(len(rows), decoder.config.model_dim)
    places = {row: n for n, row in enumerate(rows)}
    chosen = chooser.choose([writes, draws, ends], hidden, places).told()
    assert [work for work, _, _ in chosen] == [draws, writes, ends]

    logits = decoder.head(hidden)[:, : v.size]
    mixed = logits[2] + 2 * (logits[1] - logits[2])
    scores = {draws: mixed[list(v.codes)], writes: logits[0], ends: logits[3]}
    assert draws.grammar.expected is Next.CODE
    codes = dict(zip(scores, [list(v.codes), *[[2, v.begin_image, *v.text]] * 2], strict=True))
    codes[ends] = [2, *v.text]
    for work, [id_], [logprob] in chosen:
        own = scores[work] if work is draws else scores[work][codes[work]]
        assert id_ == codes[work][int(own.argmax())]
        assert logprob == pytest.approx(own.log_softmax(0).max().item(), abs=1e-5)


@torch.no_grad()
def test_what_was_seen_is_penalised(chooser: Chooser, decoder: Decoder, v: Vocabulary) -> None:
    hidden = torch.randn(1, decoder.config.model_dim)
    text = TextSampling(temperature=0.0, repetition_penalty=1000.0)
    work = seated(chooser, v, seat=3, text=text, max_images=0)
    # A positive logit of what was seen is as good as nothing: every id comes before any again.
    found = []
    positive = int((chooser.columns.of_text(hidden)[0, 2:] > 0).sum())
    for _ in range(positive):
        [(_, [id_], _)] = chooser.choose([work], hidden, {work.cond: 0}).told()
        found.append(id_)
    assert len(set(found) - {v.eos}) >= positive - 1
    again = seated(chooser, v, *found[:1], seat=3, text=text, max_images=0)
    [(_, [id_], _)] = chooser.choose([again], hidden, {again.cond: 0}).told()
    assert id_ == found[1]
    # A seat that is taken anew remembers nothing.
    fresh = seated(chooser, v, seat=3, text=text, max_images=0)
    [(_, [id_], _)] = chooser.choose([fresh], hidden, {fresh.cond: 0}).told()
    assert id_ == found[0]


def test_forced_ids_are_noted(chooser: Chooser, v: Vocabulary) -> None:
    work = seated(chooser, v, seat=1)
    column = int(chooser.columns.column[v.begin_image])
    assert not chooser._seen[1, column]
    chooser.note(work, [v.begin_image, 5])
    assert chooser._seen[1, column]
    assert chooser._seen[1, :-1].sum() == 1


@torch.no_grad()
def test_rows_that_stand_for_each_other_are_computed_once(
    chooser: Chooser, decoder: Decoder, v: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ImageSampling(guidance_scale=1.0, image_guidance_scale=1.0)
    works = [
        seated(chooser, v, v.begin_image, seat=0, image=plain),
        seated(chooser, v, v.begin_image, seat=1),
    ]
    rows: list[SequenceState] = [row for work in works for row in work.sequences]
    sizes: list[int] = []
    real = chooser.columns.of_codes
    monkeypatch.setattr(chooser.columns, "of_codes", lambda h: (sizes.append(len(h)), real(h))[1])
    hidden = torch.randn(3, decoder.config.model_dim)
    chooser.choose(works, hidden, {row: number for number, row in enumerate(rows)})
    assert sizes == [3]
