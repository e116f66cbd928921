"""Sampler: groups of a batch, guidance, tokens seen, and slices of the vocabulary."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from calumma.generate.grammar import Grammar, TokenKind
from calumma.generate.params import ImageSampling, Request, TextSampling
from calumma.generate.request import RequestState
from calumma.generate.sequence_state import SequenceState
from calumma.generate.token_sampler import TEXT_KINDS, HeadSlices, Sampler
from calumma.model.decoder import Decoder
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary

GREEDY = {"text": TextSampling(temperature=0.0, repetition_penalty=1.0)}


@pytest.fixture
def v(text_tokenizer: TextTokenizer) -> Vocabulary:
    return text_tokenizer.vocabulary


@pytest.fixture
def sampler(decoder: Decoder, v: Vocabulary) -> Sampler:
    return Sampler(HeadSlices(decoder, v), num_batch_slots=4)


def add_request(sampler: Sampler, v: Vocabulary, *ids: int, batch_slot: int = 0, **options: Any) -> RequestState:
    made = RequestState.from_request(Request(prompt_token_ids=(0, *ids), **options), v, 4, 128)
    made.allocate(0, batch_slot)
    sampler.add_request(made)
    return made


@torch.no_grad()
def test_each_kind_is_sampled_from_its_own_tokens(sampler: Sampler, decoder: Decoder, v: Vocabulary) -> None:
    image = ImageSampling(temperature=0.0, guidance_scale=2.0)
    text = add_request(sampler, v, 40, batch_slot=0, **GREEDY)
    image_state = add_request(sampler, v, 41, v.begin_image, batch_slot=1, image=image)
    text_only = add_request(sampler, v, 42, batch_slot=2, modality="text", **GREEDY)
    rows = [*text.sequences, *image_state.sequences, *text_only.sequences]
    hidden = torch.randn(len(rows), decoder.config.model_dim)
    index_of = {row: n for n, row in enumerate(rows)}
    sampled = sampler.sample([text, image_state, text_only], hidden, index_of).get_output()
    assert [tokens.request for tokens in sampled] == [image_state, text, text_only]

    logits = decoder.head(hidden)[:, : v.size]
    guided = logits[2] + 2 * (logits[1] - logits[2])
    scores = {image_state: guided[list(v.codes)], text: logits[0], text_only: logits[3]}
    assert image_state.grammar.next_kind is TokenKind.IMAGE_CODE
    codes = dict(zip(scores, [list(v.codes), *[[2, v.begin_image, *v.text]] * 2], strict=True))
    codes[text_only] = [2, *v.text]
    for state, [id_], [logprob], _ in sampled:
        own = scores[state] if state is image_state else scores[state][codes[state]]
        assert id_ == codes[state][int(own.argmax())]
        assert logprob == pytest.approx(own.log_softmax(0).max().item(), abs=1e-5)


@torch.no_grad()
def test_seen_tokens_are_penalized(sampler: Sampler, decoder: Decoder, v: Vocabulary) -> None:
    hidden = torch.randn(1, decoder.config.model_dim)
    text = TextSampling(temperature=0.0, repetition_penalty=1000.0)
    state = add_request(sampler, v, batch_slot=3, text=text, max_images=0)
    # The penalty makes positive logits of seen tokens tiny: every token comes before a repetition.
    found = []
    positive = int((sampler.vocab_slices.text_logits(hidden)[0, 2:] > 0).sum())
    for _ in range(positive):
        [(_, [id_], *_)] = sampler.sample([state], hidden, {state.cond: 0}).get_output()
        found.append(id_)
    assert len(set(found) - {v.eos}) >= positive - 1
    again = add_request(sampler, v, *found[:1], batch_slot=3, text=text, max_images=0)
    [(_, [id_], *_)] = sampler.sample([again], hidden, {again.cond: 0}).get_output()
    assert id_ == found[1]
    # A batch slot that is reused is reset.
    fresh = add_request(sampler, v, batch_slot=3, text=text, max_images=0)
    [(_, [id_], *_)] = sampler.sample([fresh], hidden, {fresh.cond: 0}).get_output()
    assert id_ == found[0]


def test_forced_tokens_are_marked_as_seen(sampler: Sampler, v: Vocabulary) -> None:
    state = add_request(sampler, v, batch_slot=1)
    column = int(sampler.vocab_slices.token_to_column[v.begin_image])
    assert not sampler._seen[1, column]
    sampler.mark_seen(state, [v.begin_image, 5])
    assert sampler._seen[1, column]
    assert sampler._seen[1, :-1].sum() == 1


@torch.no_grad()
def test_logits_are_computed_once_for_each_sequence(
    sampler: Sampler, decoder: Decoder, v: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ImageSampling(guidance_scale=1.0, image_guidance_scale=1.0)
    states = [
        add_request(sampler, v, v.begin_image, batch_slot=0, image=plain),
        add_request(sampler, v, v.begin_image, batch_slot=1),
    ]
    rows: list[SequenceState] = [row for state in states for row in state.sequences]
    sizes: list[int] = []
    real = sampler.vocab_slices.image_logits
    monkeypatch.setattr(sampler.vocab_slices, "image_logits", lambda h, _: (sizes.append(len(h)), real(h))[1])
    hidden = torch.randn(3, decoder.config.model_dim)
    sampler.sample(states, hidden, {row: number for number, row in enumerate(rows)})
    assert sizes == [3]


V = Vocabulary(num_codes=4, num_text=5, num_reserved=3)


def small_slices(decoder: Decoder, spare: int = 0) -> tuple[Decoder, HeadSlices]:
    size = V.size + spare
    small = Decoder(replace(decoder.config, vocabulary_size=size)).requires_grad_(False)
    small.init_weights(0)
    return small, HeadSlices(small, V)


def test_slices_are_those_of_the_head(decoder: Decoder) -> None:
    # Rows of the head beyond the vocabulary belong to no column.
    for spare in (0, 3):
        small, columns = small_slices(decoder, spare)
        hidden = torch.randn(12, small.config.model_dim)
        full = small.head(hidden)
        text = [V.eos, V.begin_image, *V.text]
        assert columns.text_token_ids.tolist() == text
        assert torch.allclose(columns.text_logits(hidden), full[:, text], atol=1e-6)
        assert torch.allclose(columns.image_logits(hidden), full[:, list(V.codes)], atol=1e-6)
        assert columns.text_logits(hidden.bfloat16().float()).dtype == torch.float32


def test_every_token_has_its_column(decoder: Decoder) -> None:
    _, columns = small_slices(decoder)
    for id_ in range(V.size):
        column = int(columns.token_to_column[id_])
        if id_ in columns.text_token_ids:
            assert columns.text_token_ids[column] == id_
        else:
            assert column == len(columns.text_token_ids)


def test_masks_are_those_of_the_grammar(decoder: Decoder) -> None:
    _, columns = small_slices(decoder)
    states = {
        TokenKind.TEXT: Grammar(V, 2, max_remaining_tokens=1),
        TokenKind.TEXT_OR_IMAGE: Grammar(V, 2, max_remaining_tokens=9),
        TokenKind.IMAGE_OR_EOS: Grammar(V, 2, max_remaining_tokens=9, images_only=True),
    }
    assert tuple(states) == TEXT_KINDS[:3]
    assert TEXT_KINDS[-1] is TokenKind.TEXT_BEFORE_IMAGE
    states[TEXT_KINDS[-1]] = Grammar(V, 2, max_remaining_tokens=9, images_only=True, max_leading_text_tokens=1)
    for kind, grammar in states.items():
        assert grammar.next_kind is kind
        allowed = [grammar.allows(id_) for id_ in columns.text_token_ids.tolist()]
        assert (~columns.disallowed[kind]).tolist() == allowed
