"""Choosing for many requests at once: groups, guidance, what was seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from calumma.generate.grammar import TokenKind
from calumma.generate.params import ImageSampling, Request, TextSampling
from calumma.generate.request import RequestState, SequenceState
from calumma.generate.sampler import Sampler
from calumma.model.decoder import Decoder
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary

GREEDY = {"text": TextSampling(temperature=0.0, repetition_penalty=1.0)}


@pytest.fixture
def v(text_tokenizer: TextTokenizer) -> Vocabulary:
    return text_tokenizer.vocabulary


@pytest.fixture
def chooser(decoder: Decoder, v: Vocabulary) -> Sampler:
    return Sampler(decoder, v, seats=4)


def seated(
    chooser: Sampler, v: Vocabulary, *ids: int, seat: int = 0, **options: Any
) -> RequestState:
    made = RequestState.from_request(Request(prompt_token_ids=(0, *ids), **options), v, 4, 128)
    made.allocate(0, seat)
    chooser.add_request(made)
    return made


@torch.no_grad()
def test_each_kind_is_chosen_among_its_own(
    chooser: Sampler, decoder: Decoder, v: Vocabulary
) -> None:
    image = ImageSampling(temperature=0.0, guidance_scale=2.0)
    writes = seated(chooser, v, 40, seat=0, **GREEDY)
    draws = seated(chooser, v, 41, v.begin_image, seat=1, image=image)
    ends = seated(chooser, v, 42, seat=2, modality="text", **GREEDY)
    rows = [*writes.sequences, *draws.sequences, *ends.sequences]
    hidden = torch.randn(len(rows), decoder.config.model_dim)
    places = {row: n for n, row in enumerate(rows)}
    chosen = chooser.sample([writes, draws, ends], hidden, places).get_output()
    assert [work for work, _, _ in chosen] == [draws, writes, ends]

    logits = decoder.head(hidden)[:, : v.size]
    mixed = logits[2] + 2 * (logits[1] - logits[2])
    scores = {draws: mixed[list(v.codes)], writes: logits[0], ends: logits[3]}
    assert draws.grammar.next_kind is TokenKind.IMAGE_CODE
    codes = dict(zip(scores, [list(v.codes), *[[2, v.begin_image, *v.text]] * 2], strict=True))
    codes[ends] = [2, *v.text]
    for work, [id_], [logprob] in chosen:
        own = scores[work] if work is draws else scores[work][codes[work]]
        assert id_ == codes[work][int(own.argmax())]
        assert logprob == pytest.approx(own.log_softmax(0).max().item(), abs=1e-5)


@torch.no_grad()
def test_what_was_seen_is_penalised(chooser: Sampler, decoder: Decoder, v: Vocabulary) -> None:
    hidden = torch.randn(1, decoder.config.model_dim)
    text = TextSampling(temperature=0.0, repetition_penalty=1000.0)
    work = seated(chooser, v, seat=3, text=text, max_images=0)
    # A positive logit of what was seen is as good as nothing: every id comes before any again.
    found = []
    positive = int((chooser.vocab_slices.text_logits(hidden)[0, 2:] > 0).sum())
    for _ in range(positive):
        [(_, [id_], _)] = chooser.sample([work], hidden, {work.cond: 0}).get_output()
        found.append(id_)
    assert len(set(found) - {v.eos}) >= positive - 1
    again = seated(chooser, v, *found[:1], seat=3, text=text, max_images=0)
    [(_, [id_], _)] = chooser.sample([again], hidden, {again.cond: 0}).get_output()
    assert id_ == found[1]
    # A seat that is taken anew remembers nothing.
    fresh = seated(chooser, v, seat=3, text=text, max_images=0)
    [(_, [id_], _)] = chooser.sample([fresh], hidden, {fresh.cond: 0}).get_output()
    assert id_ == found[0]


def test_forced_ids_are_noted(chooser: Sampler, v: Vocabulary) -> None:
    work = seated(chooser, v, seat=1)
    column = int(chooser.vocab_slices.token_to_column[v.begin_image])
    assert not chooser._seen[1, column]
    chooser.mark_seen(work, [v.begin_image, 5])
    assert chooser._seen[1, column]
    assert chooser._seen[1, :-1].sum() == 1


@torch.no_grad()
def test_rows_that_stand_for_each_other_are_computed_once(
    chooser: Sampler, decoder: Decoder, v: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ImageSampling(guidance_scale=1.0, image_guidance_scale=1.0)
    works = [
        seated(chooser, v, v.begin_image, seat=0, image=plain),
        seated(chooser, v, v.begin_image, seat=1),
    ]
    rows: list[SequenceState] = [row for work in works for row in work.sequences]
    sizes: list[int] = []
    real = chooser.vocab_slices.image_logits
    monkeypatch.setattr(
        chooser.vocab_slices, "of_codes", lambda h: (sizes.append(len(h)), real(h))[1]
    )
    hidden = torch.randn(3, decoder.config.model_dim)
    chooser.sample(works, hidden, {row: number for number, row in enumerate(rows)})
    assert sizes == [3]
