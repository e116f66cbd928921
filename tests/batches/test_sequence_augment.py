"""Pair order and condition dropout, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from calumma.batches.sequence_augment import drop_condition, set_pair_order, split_pair
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=3, num_text=256)
BOS, EOS, END, BEGIN, TURN = V.bos, V.eos, V.end_image, V.begin_image, V.end_turn
TEXT_FIRST = [BOS, 20, 21, BEGIN, 4, 5, END, EOS]
IMAGE_FIRST = [BOS, BEGIN, 4, 5, END, 20, 21, EOS]
CONVERSATION = [BOS, 20, TURN, BEGIN, 4, END, EOS]

NO_PAIRS = {
    "text alone": [BOS, 20, EOS],
    "an image alone": [BOS, BEGIN, 4, END, EOS],
    "text on both sides": [BOS, 20, BEGIN, 4, END, 21, EOS],
    "two images": [BOS, 20, BEGIN, 4, END, BEGIN, 4, END, EOS],
    "a conversation": CONVERSATION,
}


def ids(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("pair", [TEXT_FIRST, IMAGE_FIRST])
def test_a_pair_is_put_in_the_given_order(pair: list[int]) -> None:
    parts = split_pair(ids(pair), V)
    assert parts is not None
    assert set_pair_order(ids(pair), parts, image_first=True).tolist() == IMAGE_FIRST
    assert set_pair_order(ids(pair), parts, image_first=False).tolist() == TEXT_FIRST


@pytest.mark.parametrize("values", NO_PAIRS.values(), ids=NO_PAIRS)
def test_other_sequences_are_no_pairs(values: list[int]) -> None:
    assert split_pair(ids(values), V) is None


def test_a_pair_s_text_is_dropped() -> None:
    loss_mask = np.ones(len(TEXT_FIRST), dtype=bool)
    ids_left = drop_condition(ids(TEXT_FIRST), loss_mask, V)
    assert ids_left is not None and ids_left.tolist() == [BOS, BEGIN, 4, 5, END, EOS]


def test_a_prompt_answered_by_an_image_is_dropped() -> None:
    loss_mask = np.array([False] * 3 + [True] * 4)
    ids_left = drop_condition(ids(CONVERSATION), loss_mask, V)
    assert ids_left is not None and ids_left.tolist() == [BOS, BEGIN, 4, END, EOS]


@pytest.mark.parametrize(
    "values",
    [IMAGE_FIRST, [BOS, 20, EOS], NO_PAIRS["text on both sides"], NO_PAIRS["two images"]],
)
def test_without_a_condition_nothing_is_dropped(values: list[int]) -> None:
    assert drop_condition(ids(values), np.ones(len(values), dtype=bool), V) is None


def test_a_question_about_an_image_keeps_it() -> None:
    values = [BOS, 20, BEGIN, 4, END, TURN, 21, EOS]
    loss_mask = np.array([False] * 6 + [True] * 2)
    assert drop_condition(ids(values), loss_mask, V) is None
