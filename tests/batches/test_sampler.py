"""Sampling: a sequence's index and epoch decide everything that is done to it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.batches.sampler import (
    FeistelPermutation,
    SequenceRef,
    SequenceSampler,
    drop_condition,
    set_pair_order,
    shuffled_index,
    split_pair,
)
from calumma.shards.reader import ShardReader
from calumma.vocabulary import Vocabulary
from tests.batches.shards_of_three import SIZES, V, written


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return written(tmp_path_factory.mktemp("shards"), {**SIZES, "pairs": 2000})


def sampler(reader: ShardReader, *, first: float = 0.5, drop: float = 0.0) -> SequenceSampler:
    return SequenceSampler(reader, seq_len=6, image_first_prob=first, cond_dropout_prob=drop, seed=3)


def test_every_sequence_is_drawn_once_per_epoch_and_reshuffled_for_the_next(reader: ShardReader) -> None:
    size = SIZES["text"]
    refs = [sampler(reader).sample("text", count) for count in range(2 * size)]
    one, two = refs[:size], refs[size:]
    assert [ref.epoch for ref in refs] == [0] * size + [1] * size
    assert sorted(d.sequence for d in one) == sorted(d.sequence for d in two)
    assert [d.sequence for d in one] != [d.sequence for d in two]
    assert {reader.source_of(ref.sequence) for ref in refs} == {"text"}


@pytest.mark.parametrize("probability", [0.2, 0.5])
def test_pairs_come_image_first_with_the_configured_probability(reader: ShardReader, probability: float) -> None:
    loaded = sampler(reader, first=probability)
    orders = [loaded.load(SequenceRef(n, 0))[0][0][1] == V.begin_image for n in range(2000)]
    assert abs(np.mean(orders) - probability) < 0.03


def test_conditions_are_dropped_with_the_configured_probability(reader: ShardReader) -> None:
    loaded = sampler(reader, first=0.0, drop=0.1)
    ids_of = [loaded.load(SequenceRef(n, 0))[0][0].tolist() for n in range(2000)]
    dropped = [V.bos, V.begin_image, 4, 5, V.end_image, V.eos]
    assert abs(np.mean([ids == dropped for ids in ids_of]) - 0.1) < 0.03


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_lengths_are_those_of_the_loaded_chunks(reader: ShardReader, drop: float) -> None:
    loaded = sampler(reader, drop=drop)
    for number in range(0, len(reader), 7):
        ref = SequenceRef(number, 1)
        assert loaded.lengths(ref) == [len(ids) - 1 for ids, _ in loaded.load(ref)]


def test_another_sampler_loads_the_same(reader: ShardReader, tmp_path: Path) -> None:
    one, other = sampler(reader, drop=0.3), sampler(reader, drop=0.3)
    numbers = np.random.default_rng(0).permutation(len(reader))[:200]
    expected = {int(n): one.load(SequenceRef(int(n), 2))[0][0].tolist() for n in numbers}
    for number in sorted(expected):
        assert other.load(SequenceRef(number, 2))[0][0].tolist() == expected[number]


SMALL = Vocabulary(num_codes=3, num_text=256)
BOS, EOS, END, BEGIN, TURN = (SMALL.bos, SMALL.eos, SMALL.end_image, SMALL.begin_image, SMALL.end_turn)
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
    parts = split_pair(ids(pair), SMALL)
    assert parts is not None
    assert set_pair_order(ids(pair), parts, image_first=True).tolist() == IMAGE_FIRST
    assert set_pair_order(ids(pair), parts, image_first=False).tolist() == TEXT_FIRST


@pytest.mark.parametrize("values", NO_PAIRS.values(), ids=NO_PAIRS)
def test_other_sequences_are_no_pairs(values: list[int]) -> None:
    assert split_pair(ids(values), SMALL) is None


def test_a_pair_s_text_is_dropped() -> None:
    loss_mask = np.ones(len(TEXT_FIRST), dtype=bool)
    ids_left = drop_condition(ids(TEXT_FIRST), loss_mask, SMALL)
    assert ids_left is not None and ids_left.tolist() == [BOS, BEGIN, 4, 5, END, EOS]


def test_a_prompt_answered_by_an_image_is_dropped() -> None:
    loss_mask = np.array([False] * 3 + [True] * 4)
    ids_left = drop_condition(ids(CONVERSATION), loss_mask, SMALL)
    assert ids_left is not None and ids_left.tolist() == [BOS, BEGIN, 4, END, EOS]


@pytest.mark.parametrize(
    "values", [IMAGE_FIRST, [BOS, 20, EOS], NO_PAIRS["text on both sides"], NO_PAIRS["two images"]]
)
def test_without_a_condition_nothing_is_dropped(values: list[int]) -> None:
    assert drop_condition(ids(values), np.ones(len(values), dtype=bool), SMALL) is None


def test_a_question_about_an_image_keeps_it() -> None:
    values = [BOS, 20, BEGIN, 4, END, TURN, 21, EOS]
    loss_mask = np.array([False] * 6 + [True] * 2)
    assert drop_condition(ids(values), loss_mask, SMALL) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 1 << 40))
def test_every_index_occurs_once(size: int, seed: int) -> None:
    order = FeistelPermutation(size, [seed, 7])
    assert len(order) == size
    assert sorted(order) == list(range(size))


def test_the_same_seed_gives_the_same_order_and_another_gives_another() -> None:
    one, again, other = (
        FeistelPermutation(100, [1, 2]),
        FeistelPermutation(100, [1, 2]),
        FeistelPermutation(100, [2, 1]),
    )
    assert list(one) == list(again) != list(other)


def test_indices_and_their_neighbors_are_spread() -> None:
    size = 2000
    order = np.array([FeistelPermutation(size, [seed])[index] for seed in range(5) for index in range(size)])
    order = order.reshape(5, size)
    for row in order:
        assert abs(np.corrcoef(row, np.arange(size))[0, 1]) < 0.08
        assert abs(np.corrcoef(row[1:], row[:-1])[0, 1]) < 0.08
    # A random order keeps one neighbor on average, whatever its length.
    assert np.mean(np.abs(np.diff(order)) == 1) * size < 6


@pytest.mark.parametrize("size", [2, 3, 5, 12])
def test_in_short_permutations_each_index_is_first_equally_often(size: int) -> None:
    firsts = np.bincount([FeistelPermutation(size, [seed])[0] for seed in range(4000)], minlength=size)
    expected = 4000 / size
    chi_square = float(((firsts - expected) ** 2 / expected).sum())
    assert chi_square < size - 1 + 5 * (2 * (size - 1)) ** 0.5


def test_a_size_of_a_trillion_is_fast() -> None:
    order = FeistelPermutation(10**12, [3])
    found = {order[index] for index in range(500)}
    assert len(found) == 500
    assert min(found) < 10**11 < 9 * 10**11 < max(found)


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_out_of_range_is_an_error(index: int) -> None:
    with pytest.raises(IndexError):
        FeistelPermutation(4, [0])[index]


def test_each_index_comes_once_an_epoch_in_another_order() -> None:
    first, second = ([shuffled_index(start + i, 50, 3) for i in range(50)] for start in (0, 50))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != [shuffled_index(i, 50, 4) for i in range(50)]


def test_order_is_the_one_of_earlier_versions() -> None:
    order = np.random.default_rng([3, 1]).permutation(7)
    assert [shuffled_index(7 + i, 7, 3) for i in range(7)] == order.tolist()
