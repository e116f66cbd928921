"""Rows of fixed length."""

from __future__ import annotations

import numpy as np

from calumma.batches.batch import CONTROL, IMAGE, NOTHING, PADDING, TEXT, Batch
from calumma.vocabulary import Vocabulary

BATCH = Batch(
    input_ids=np.array([[0, 5, 1], [0, 6, 7]]),
    labels=np.array([[5, 2, 1], [6, 7, 2]]),
    loss_mask=np.array([[False, True, False], [True, True, True]]),
    document_ids=np.array([[0, 0, PADDING], [0, 0, 0]]),
    position_ids=np.array([[0, 1, 0], [0, 1, 2]]),
)


def test_counts_and_fill_by_hand() -> None:
    assert BATCH.num_loss_tokens == 4
    assert BATCH.non_padding_fraction == 5 / 6


def test_some_of_the_rows() -> None:
    turned = BATCH.rows(np.array([1, 0]))
    assert turned.input_ids.tolist() == [[0, 6, 7], [0, 5, 1]]
    last = BATCH.rows(slice(1, 2))
    assert (last.labels.tolist(), last.document_ids.tolist()) == ([[6, 7, 2]], [[0, 0, 0]])
    assert (last.loss_mask.tolist(), last.position_ids.tolist()) == ([[True] * 3], [[0, 1, 2]])


def test_what_each_target_is() -> None:
    vocabulary = Vocabulary(num_codes=3, num_text=256)
    text = vocabulary.text.start
    targets = np.array([[text, vocabulary.begin_image, 4, 6, vocabulary.end_image, 2, 1]])
    owners = np.array([[0, 0, 0, 0, 0, 0, PADDING]])
    nothing = np.zeros_like(targets)
    batch = Batch(nothing, targets, nothing.astype(bool), owners, nothing)
    kinds = [TEXT, CONTROL, IMAGE, IMAGE, CONTROL, CONTROL, NOTHING]
    assert batch.modalities(vocabulary).tolist() == [kinds]
