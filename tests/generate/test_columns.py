"""The head's columns against the whole head, and their masks against the grammar."""

from __future__ import annotations

from dataclasses import replace

import torch

from calumma.generate.columns import CHOICES, Columns
from calumma.generate.grammar import Grammar, Next
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=5, num_reserved=3)


def made(decoder: Decoder, spare: int = 0) -> tuple[Decoder, Columns]:
    size = V.size + spare
    small = Decoder(replace(decoder.config, vocabulary_size=size)).requires_grad_(False)
    small.initialise(0)
    return small, Columns(small, V)


def test_columns_are_those_of_the_head(decoder: Decoder) -> None:
    # Spare rows of the head, behind the vocabulary, belong to no column.
    for spare in (0, 3):
        small, columns = made(decoder, spare)
        hidden = torch.randn(12, small.config.model_dim)
        whole = small.head(hidden)
        text = [V.eos, V.begin_image, *V.text]
        assert columns.ids.tolist() == text
        assert torch.allclose(columns.of_text(hidden), whole[:, text], atol=1e-6)
        assert torch.allclose(columns.of_codes(hidden), whole[:, list(V.codes)], atol=1e-6)
        assert columns.of_text(hidden.bfloat16().float()).dtype == torch.float32


def test_every_id_knows_its_column(decoder: Decoder) -> None:
    _, columns = made(decoder)
    for id_ in range(V.size):
        column = int(columns.column[id_])
        if id_ in columns.ids:
            assert columns.ids[column] == id_
        else:
            assert column == len(columns.ids)


def test_masks_forbid_what_the_grammar_does(decoder: Decoder) -> None:
    _, columns = made(decoder)
    states = {
        Next.TEXT: Grammar(V, 2, room=1),
        Next.TEXT_OR_IMAGE: Grammar(V, 2, room=9),
        Next.IMAGE_OR_STOP: Grammar(V, 2, room=9, images_only=True),
    }
    assert tuple(states) == CHOICES
    for kind, grammar in states.items():
        assert grammar.expected is kind
        allowed = [grammar.allows(id_) for id_ in columns.ids.tolist()]
        assert (~columns.forbidden[kind]).tolist() == allowed
