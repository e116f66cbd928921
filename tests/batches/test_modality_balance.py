"""Modality pairings, on a vocabulary small enough to write out, and mixtures of real shards."""

from __future__ import annotations

import numpy as np
import pytest

from calumma.batches.modality_balance import (
    PLAIN_PAIRING,
    ModalityBalance,
    equalize_pairings,
    format_balance,
    measure_balance,
    measure_pairings,
    modality_pairing,
)
from calumma.errors import ShardError
from calumma.shards.reader import ShardReader
from calumma.vocabulary import Vocabulary

SMALL = Vocabulary(num_codes=4, num_text=9)
IMAGE = [SMALL.begin_image, 4, 5, SMALL.end_image]
WORD = [SMALL.text.start]


@pytest.mark.parametrize(
    ("prompt", "answer", "pairing"),
    [
        (WORD, WORD, "text->text"),
        (WORD, IMAGE, "text->image"),
        ([*IMAGE, *WORD], WORD, "text+image->text"),
        (WORD, [*WORD, *IMAGE], "text->text+image"),
        (IMAGE, [], "image->nothing"),
    ],
)
def test_a_pairing_says_what_is_asked_and_answered_in(
    prompt: list[int], answer: list[int], pairing: str
) -> None:
    ids = np.array([SMALL.bos, *prompt, SMALL.end_turn, *answer, SMALL.eos])
    counted = np.arange(len(ids)) >= len(prompt) + 2
    assert modality_pairing(ids, counted, SMALL) == pairing


def test_documents_without_turns_are_plain() -> None:
    ids = np.array([SMALL.bos, *WORD, *IMAGE, SMALL.eos])
    assert modality_pairing(ids, np.ones(len(ids), dtype=bool), SMALL) == PLAIN_PAIRING


def balance(**pairings: float) -> ModalityBalance:
    return ModalityBalance(
        {"a": 1.0}, {name.replace("_to_", "->"): s for name, s in pairings.items()}
    )


def test_a_mixture_that_only_draws_or_never_draws_is_warned_of() -> None:
    assert balance(text_to_text=0.9, text_to_image=0.1).warning is None
    assert balance(text_to_text=1.0).warning == (
        "unbalanced: 0.0% of the answers have a picture; the model may forget to draw when it is "
        'asked to. Give other sources a larger share, or set balance = "pairings".'
    )
    assert balance(text_to_text=0.01, text_to_image=0.99).warning == (
        "unbalanced: 99.0% of the answers have a picture; the model may draw whatever it is "
        'asked. Give other sources a larger share, or set balance = "pairings".'
    )


def test_shares_of_sources_become_shares_of_pairings(reader: ShardReader) -> None:
    assert measure_pairings(reader, "chat") == {"text+image->text": 1.0}
    found = measure_balance({"chat": 3.0, "pairs": 1.0, "text": 0.0}, reader)
    assert found.sources == {"chat": 0.75, "pairs": 0.25}
    assert found.pairings == {PLAIN_PAIRING: 0.25, "text+image->text": 0.75}
    assert found.to_json()["drawn"] == 0.0


def test_pairings_are_made_equal_and_sources_of_one_keep_their_shares(reader: ShardReader) -> None:
    weights = {"chat": 8.0, "pairs": 3.0, "text": 1.0}
    assert equalize_pairings(weights, reader) == {"chat": 0.5, "pairs": 0.375, "text": 0.125}


def test_a_balance_is_told_in_lines_and_the_warning_comes_last() -> None:
    lines = format_balance(balance(text_to_image=1.0))
    assert lines[:2] == ["pairing       sequences", "text->image      100.0%"]
    assert lines[2].startswith("unbalanced: 100.0%")


def test_a_source_that_the_shards_lack_is_refused(reader: ShardReader) -> None:
    with pytest.raises(ShardError, match="holds no source 'chats'"):
        measure_balance({"chats": 1.0}, reader)
