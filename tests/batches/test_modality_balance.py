"""Modality pairings of small sequences, and the balance of mixtures of real shards."""

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
def test_a_pairing_names_the_modalities_of_prompt_and_answer(
    prompt: list[int], answer: list[int], pairing: str
) -> None:
    ids = np.array([SMALL.bos, *prompt, SMALL.end_turn, *answer, SMALL.eos])
    loss_mask = np.arange(len(ids)) >= len(prompt) + 2
    assert modality_pairing(ids, loss_mask, SMALL) == pairing


def test_documents_without_turns_are_plain() -> None:
    ids = np.array([SMALL.bos, *WORD, *IMAGE, SMALL.eos])
    assert modality_pairing(ids, np.ones(len(ids), dtype=bool), SMALL) == PLAIN_PAIRING


def balance(**pairings: float) -> ModalityBalance:
    return ModalityBalance({"a": 1.0}, {name.replace("_to_", "->"): s for name, s in pairings.items()})


def test_a_mixture_with_images_in_all_or_no_answers_gives_a_warning() -> None:
    assert balance(text_to_text=0.9, text_to_image=0.1).warning is None
    assert balance(text_to_text=1.0).warning == (
        "unbalanced: 0.0% of the answers contain images; the model may stop generating images when "
        'asked to. Give other sources a larger weight, or set balance = "pairings".'
    )
    assert balance(text_to_text=0.01, text_to_image=0.99).warning == (
        "unbalanced: 99.0% of the answers contain images; the model may generate images whatever "
        "it "
        'is asked. Give other sources a larger weight, or set balance = "pairings".'
    )


def test_source_weights_become_pairing_fractions(reader: ShardReader) -> None:
    assert measure_pairings(reader, "chat") == {"text+image->text": 1.0}
    found = measure_balance({"chat": 3.0, "pairs": 1.0, "text": 0.0}, reader)
    assert found.sources == {"chat": 0.75, "pairs": 0.25}
    assert found.pairings == {PLAIN_PAIRING: 0.25, "text+image->text": 0.75}
    assert found.to_json()["image_answer_fraction"] == 0.0


def test_pairings_are_equalized_and_sources_of_one_keep_their_ratios(reader: ShardReader) -> None:
    weights = {"chat": 8.0, "pairs": 3.0, "text": 1.0}
    assert equalize_pairings(weights, reader) == {"chat": 0.5, "pairs": 0.375, "text": 0.125}


def test_a_balance_is_formatted_with_the_warning_last() -> None:
    lines = format_balance(balance(text_to_image=1.0))
    assert lines[:2] == ["pairing       sequences", "text->image      100.0%"]
    assert lines[2].startswith("unbalanced: 100.0%")


def test_a_source_that_the_shards_lack_is_refused(reader: ShardReader) -> None:
    with pytest.raises(ShardError, match="has no source"):
        measure_balance({"chats": 1.0}, reader)
