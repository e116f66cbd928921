"""The head's columns against the whole head, and their masks against the grammar."""

from __future__ import annotations

from dataclasses import replace

import torch

from calumma.generate.columns import SAMPLED_TEXT_KINDS, VocabSlices
from calumma.generate.grammar import Grammar, TokenKind
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=5, num_reserved=3)


def made(decoder: Decoder, spare: int = 0) -> tuple[Decoder, VocabSlices]:
    size = V.size + spare
    small = Decoder(replace(decoder.config, vocabulary_size=size)).requires_grad_(False)
    small.init_weights(0)
    return small, VocabSlices(small, V)


def test_columns_are_those_of_the_head(decoder: Decoder) -> None:
    # Spare rows of the head, behind the vocabulary, belong to no column.
    for spare in (0, 3):
        small, columns = made(decoder, spare)
        hidden = torch.randn(12, small.config.model_dim)
        whole = small.head(hidden)
        text = [V.eos, V.begin_image, *V.text]
        assert columns.text_token_ids.tolist() == text
        assert torch.allclose(columns.text_logits(hidden), whole[:, text], atol=1e-6)
        assert torch.allclose(columns.image_logits(hidden), whole[:, list(V.codes)], atol=1e-6)
        assert columns.text_logits(hidden.bfloat16().float()).dtype == torch.float32


def test_every_id_knows_its_column(decoder: Decoder) -> None:
    _, columns = made(decoder)
    for id_ in range(V.size):
        column = int(columns.token_to_column[id_])
        if id_ in columns.text_token_ids:
            assert columns.text_token_ids[column] == id_
        else:
            assert column == len(columns.text_token_ids)


def test_masks_forbid_what_the_grammar_does(decoder: Decoder) -> None:
    _, columns = made(decoder)
    states = {
        TokenKind.TEXT: Grammar(V, 2, max_remaining_tokens=1),
        TokenKind.TEXT_OR_IMAGE: Grammar(V, 2, max_remaining_tokens=9),
        TokenKind.IMAGE_OR_EOS: Grammar(V, 2, max_remaining_tokens=9, images_only=True),
    }
    assert tuple(states) == SAMPLED_TEXT_KINDS
    for kind, grammar in states.items():
        assert grammar.next_kind is kind
        allowed = [grammar.allows(id_) for id_ in columns.text_token_ids.tolist()]
        assert (~columns.disallowed[kind]).tolist() == allowed
