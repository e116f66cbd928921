"""Unix `compress`, undone."""

from __future__ import annotations

import random

import pytest

from calumma.corpora.lzw import unpack
from calumma.errors import CorpusError
from tests.corpora.packed import pack


def test_a_code_may_stand_for_the_string_that_it_completes() -> None:
    codes = (97, 257, 98)  # a, then "aa" while it is being made, then b
    assert unpack(sum(code << 9 * n for n, code in enumerate(codes)).to_bytes(4, "little")) == (
        b"aaab"
    )


def test_the_rest_of_a_group_is_nothing_when_the_table_is_emptied() -> None:
    group = (97 | 256 << 9).to_bytes(9, "little")
    assert unpack(group + (98 | 99 << 9).to_bytes(3, "little")) == b"abc"


@pytest.mark.parametrize("size", [0, 1, 300, 5000, 120_000])
def test_what_is_packed_comes_back(size: int) -> None:
    text = bytes(random.Random(size).choices(b"abcdefgh etaoin", k=size))
    assert unpack(pack(text)) == text


def test_broken_data_is_refused() -> None:
    with pytest.raises(CorpusError) as caught:
        unpack((300).to_bytes(2, "little"))
    assert str(caught.value) == (
        "code 300 found in packed data; expected at most 257. The package is broken: remove it from "
        "the cache and fetch again."
    )
