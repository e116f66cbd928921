"""Packing: nothing lost, nothing doubled, no image cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.batches.batch import PADDING
from calumma.batches.packing import BestFitBins, MaskedSequence, Packer, split_long_sequence
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=3, num_text=256)
BEGIN, END = V.begin_image, V.end_image
IMAGE = [BEGIN, 4, 5, END]


def item(ids: list[int], counted: list[bool] | None = None) -> MaskedSequence:
    flags = [True] * len(ids) if counted is None else counted
    return np.array(ids, dtype=np.int64), np.array(flags, dtype=bool)


def test_a_row_by_hand() -> None:
    packer = Packer(num_rows=2, row_length=5)
    assert packer.add([item([0, 20, 2], [False, False, True])])
    assert packer.add([item([0, 21, 22, 2])])
    assert packer.add([item([0, 23, 2])])
    assert not packer.add([item([0, 24, 25, 26, 2])])
    batch = packer.batch(pad=1)
    assert batch.input_ids.tolist() == [[0, 20, 0, 21, 22], [0, 23, 1, 1, 1]]
    assert batch.labels.tolist() == [[20, 2, 21, 22, 2], [23, 2, 1, 1, 1]]
    assert batch.loss_mask.tolist() == [[False, True, True, True, True], [True] * 2 + [False] * 3]
    assert batch.document_ids.tolist() == [[0, 0, 1, 1, 1], [0, 0, PADDING, PADDING, PADDING]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 0]]


def test_what_does_not_fit_whole_is_not_taken_in_part() -> None:
    packer = Packer(num_rows=1, row_length=5)
    assert not packer.add([item([0, 20, 2]), item([0, 20, 21, 22, 2])])
    assert packer.members == [[]]
    assert packer.add([item([0, 20, 21, 22, 23, 2])])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), max_size=20))
def test_each_goes_where_it_fits_best_and_a_refusal_changes_nothing(
    sequences: list[list[int]],
) -> None:
    rooms, left = BestFitBins(3, 6), [6, 6, 6]
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
        assert rooms.insert(lengths) == expected
        left = after


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 9), max_size=20), st.integers(1, 3))
def test_all_that_was_taken_stands_in_some_row_once(lengths: list[int], num_rows: int) -> None:
    packer = Packer(num_rows, row_length=8)
    items = [item([20 + number] * length) for number, length in enumerate(lengths)]
    taken = [number for number, one in enumerate(items) if packer.add([one])]
    batch = packer.batch(pad=1)
    found = sorted(batch.input_ids[batch.document_ids != PADDING].tolist())
    assert found == sorted(20 + n for n in taken for _ in range(lengths[n] - 1))
    assert np.array_equal(batch.labels[batch.loss_mask], batch.input_ids[batch.loss_mask])
    assert batch.num_loss_tokens == len(found)


def test_a_long_text_is_cut_and_every_target_stands_once() -> None:
    pieces = split_long_sequence(item([0, 20, 21, 22, 23, 24, 2]), 3, V)
    assert [ids.tolist() for ids, _ in pieces] == [[0, 20, 21, 22], [22, 23, 24, 2]]


def test_the_cut_falls_beside_an_image_where_there_is_one() -> None:
    pieces = split_long_sequence(item([0, 20, 21, *IMAGE, 22, 2]), 5, V)
    assert [ids.tolist() for ids, _ in pieces] == [[0, 20, 21], [21, *IMAGE], [0, 22, 2]]
    pieces = split_long_sequence(item([0, *IMAGE, 20, 21, 22, 23, 24, 25, 26, 2]), 6, V)
    assert [ids.tolist() for ids, _ in pieces] == [
        *([0, *IMAGE], [0, 20, 21, 22, 23, 24, 25], [25, 26, 2])
    ]


def test_an_image_longer_than_a_row_is_dropped() -> None:
    pieces = split_long_sequence(item([0, 20, BEGIN, 4, 5, 6, 4, END, 22, 2]), 4, V)
    assert [ids.tolist() for ids, _ in pieces] == [[0, 20], [0, 22, 2]]


def test_what_fits_is_not_cut() -> None:
    whole = item([0, 20, 21, 2])
    assert split_long_sequence(whole, 3, V) == [whole]


PARTS = st.lists(st.one_of(st.integers(1, 9), st.just("image")), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(PARTS, st.integers(5, 12))
def test_cutting_loses_no_target_and_cuts_no_image(parts: list[int | str], row: int) -> None:
    ids = [0]
    for part in parts:
        ids += IMAGE if isinstance(part, str) else range(20, 20 + part)
    ids.append(2)
    counted = [bool(place % 3) for place in range(len(ids))]
    pieces = split_long_sequence(item(ids, counted), row, V)
    assert [id_ for piece, _ in pieces for id_ in piece[1:].tolist()] == ids[1:]
    whole = [id_ for part in parts if isinstance(part, str) for id_ in IMAGE]
    assert [flag for _, flags in pieces for flag in flags[1:].tolist()] == counted[1:]
    inside = [i for piece, _ in pieces for i in piece.tolist() if 4 <= i <= BEGIN]
    assert inside == whole
    for piece, _ in pieces:
        assert 2 <= len(piece) <= row + 1
        assert (piece == BEGIN).sum() == (piece == END).sum()
