"""Draws: a sequence's number and epoch decide all that becomes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calumma.batches.sampler import SequenceRef, SequenceSampler
from calumma.shards.reader import ShardReader
from tests.batches.shards_of_three import SIZES, V, written


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return written(tmp_path_factory.mktemp("shards"), {**SIZES, "pairs": 2000})


def drawer(reader: ShardReader, *, first: float = 0.5, drop: float = 0.0) -> SequenceSampler:
    return SequenceSampler(reader, row_length=6, image_first=first, cond_dropout_prob=drop, seed=3)


def test_every_sequence_is_drawn_once_an_epoch_and_in_another_order_in_the_next(
    reader: ShardReader,
) -> None:
    size = SIZES["text"]
    draws = [drawer(reader).sample("text", count) for count in range(2 * size)]
    one, two = draws[:size], draws[size:]
    assert [draw.epoch for draw in draws] == [0] * size + [1] * size
    assert sorted(d.sequence for d in one) == sorted(d.sequence for d in two)
    assert [d.sequence for d in one] != [d.sequence for d in two]
    assert {reader.source_of(draw.sequence) for draw in draws} == {"text"}


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_share_of_pairs_with_the_image_first_is_the_share_asked_for(
    reader: ShardReader, share: float
) -> None:
    made = drawer(reader, first=share)
    orders = [made.load(SequenceRef(n, 0))[0][0][1] == V.begin_image for n in range(2000)]
    assert abs(np.mean(orders) - share) < 0.03


def test_the_share_of_dropped_conditions_is_the_share_asked_for(reader: ShardReader) -> None:
    made = drawer(reader, first=0.0, drop=0.1)
    bare = [made.load(SequenceRef(n, 0))[0][0].tolist() for n in range(2000)]
    dropped = [V.bos, V.begin_image, 4, 5, V.end_image, V.eos]
    assert abs(np.mean([ids == dropped for ids in bare]) - 0.1) < 0.03


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_lengths_are_those_of_the_items(reader: ShardReader, drop: float) -> None:
    made = drawer(reader, drop=drop)
    for number in range(0, len(reader), 7):
        draw = SequenceRef(number, 1)
        assert made.lengths(draw) == [len(ids) - 1 for ids, _ in made.load(draw)]


def test_another_drawer_makes_the_same_of_a_draw(reader: ShardReader, tmp_path: Path) -> None:
    one, other = drawer(reader, drop=0.3), drawer(reader, drop=0.3)
    numbers = np.random.default_rng(0).permutation(len(reader))[:200]
    expected = {int(n): one.load(SequenceRef(int(n), 2))[0][0].tolist() for n in numbers}
    for number in sorted(expected):
        assert other.load(SequenceRef(number, 2))[0][0].tolist() == expected[number]
