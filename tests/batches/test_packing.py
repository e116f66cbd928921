"""Packing: no token is lost or repeated, and no image is split."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.batches.batch import PADDING
from calumma.batches.packing import BestFitBins, MaskedSequence, collate_rows, split_long_sequence
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=3, num_text=256)
BEGIN, END = V.begin_image, V.end_image
IMAGE = [BEGIN, 4, 5, END]


def masked(ids: list[int], loss_mask: list[bool] | None = None) -> MaskedSequence:
    flags = [True] * len(ids) if loss_mask is None else loss_mask
    return np.array(ids, dtype=np.int64), np.array(flags, dtype=bool)


def test_a_batch_by_hand() -> None:
    first = [masked([0, 20, 2], [False, False, True]), masked([0, 21, 22, 2])]
    batch = collate_rows([first, [masked([0, 23, 2])]], seq_len=5, pad=1)
    assert batch.input_ids.tolist() == [[0, 20, 0, 21, 22], [0, 23, 1, 1, 1]]
    assert batch.labels.tolist() == [[20, 2, 21, 22, 2], [23, 2, 1, 1, 1]]
    assert batch.loss_mask.tolist() == [[False, True, True, True, True], [True] * 2 + [False] * 3]
    assert batch.document_ids.tolist() == [[0, 0, 1, 1, 1], [0, 0, PADDING, PADDING, PADDING]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 0]]


def test_chunks_that_do_not_all_fit_are_not_inserted() -> None:
    bins = BestFitBins(num_rows=1, seq_len=5)
    assert bins.insert([2, 4]) is None
    assert bins.insert([5]) == [0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), max_size=20))
def test_each_goes_to_the_best_fit_and_a_failure_changes_nothing(sequences: list[list[int]]) -> None:
    bins, left = BestFitBins(3, 6), [6, 6, 6]
    for lengths in sequences:
        expected: list[int] | None = []
        after = list(left)
        for length in lengths:
            fitting = [row for row in range(3) if after[row] >= length]
            if not fitting:
                expected, after = None, left
                break
            assert expected is not None
            expected.append(min(fitting, key=lambda row: after[row]))
            after[expected[-1]] -= length
        assert bins.insert(lengths) == expected
        left = after


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 9), max_size=20), st.integers(1, 3))
def test_every_inserted_sequence_is_in_one_row(lengths: list[int], num_rows: int) -> None:
    bins = BestFitBins(num_rows, seq_len=8)
    rows: list[list[MaskedSequence]] = [[] for _ in range(num_rows)]
    inserted = []
    for number, length in enumerate(lengths):
        if (found := bins.insert([length - 1])) is not None:
            rows[found[0]].append(masked([20 + number] * length))
            inserted.append(number)
    batch = collate_rows(rows, 8, pad=1)
    found_ids = sorted(batch.input_ids[batch.document_ids != PADDING].tolist())
    assert found_ids == sorted(20 + n for n in inserted for _ in range(lengths[n] - 1))
    assert np.array_equal(batch.labels[batch.loss_mask], batch.input_ids[batch.loss_mask])
    assert batch.num_loss_tokens == len(found_ids)


def test_a_long_text_is_split_and_every_label_occurs_once() -> None:
    chunks = split_long_sequence(masked([0, 20, 21, 22, 23, 24, 2]), 3, V)
    assert [ids.tolist() for ids, _ in chunks] == [[0, 20, 21, 22], [22, 23, 24, 2]]


def test_a_sequence_is_split_next_to_an_image_if_possible() -> None:
    chunks = split_long_sequence(masked([0, 20, 21, *IMAGE, 22, 2]), 5, V)
    assert [ids.tolist() for ids, _ in chunks] == [[0, 20, 21], [21, *IMAGE], [0, 22, 2]]
    chunks = split_long_sequence(masked([0, *IMAGE, 20, 21, 22, 23, 24, 25, 26, 2]), 6, V)
    assert [ids.tolist() for ids, _ in chunks] == [*([0, *IMAGE], [0, 20, 21, 22, 23, 24, 25], [25, 26, 2])]


def test_an_image_longer_than_a_row_is_dropped() -> None:
    chunks = split_long_sequence(masked([0, 20, BEGIN, 4, 5, 6, 4, END, 22, 2]), 4, V)
    assert [ids.tolist() for ids, _ in chunks] == [[0, 20], [0, 22, 2]]


def test_a_sequence_that_fits_is_not_split() -> None:
    sequence = masked([0, 20, 21, 2])
    assert split_long_sequence(sequence, 3, V) == [sequence]


PARTS = st.lists(st.one_of(st.integers(1, 9), st.just("image")), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(PARTS, st.integers(5, 12))
def test_splitting_loses_no_label_and_splits_no_image(parts: list[int | str], seq_len: int) -> None:
    ids = [0]
    for part in parts:
        ids += IMAGE if isinstance(part, str) else range(20, 20 + part)
    ids.append(2)
    loss_mask = [bool(n % 3) for n in range(len(ids))]
    chunks = split_long_sequence(masked(ids, loss_mask), seq_len, V)
    assert [id_ for chunk, _ in chunks for id_ in chunk[1:].tolist()] == ids[1:]
    expected = [id_ for part in parts if isinstance(part, str) for id_ in IMAGE]
    assert [flag for _, flags in chunks for flag in flags[1:].tolist()] == loss_mask[1:]
    inside = [i for chunk, _ in chunks for i in chunk.tolist() if 4 <= i <= BEGIN]
    assert inside == expected
    for chunk, _ in chunks:
        assert 2 <= len(chunk) <= seq_len + 1
        assert (chunk == BEGIN).sum() == (chunk == END).sum()
