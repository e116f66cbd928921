"""The bytes of a piece: widths and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calumma.shards.format import ids_dtype, map_array, piece_name, piece_sizes


@pytest.mark.parametrize(
    ("size", "dtype"), [(316, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (152_064, "<u4")]
)
def test_ids_are_as_narrow_as_the_vocabulary_allows(size: int, dtype: str) -> None:
    assert ids_dtype(size) == dtype
    assert np.array([size - 1]).astype(dtype).tolist() == [size - 1]


def test_pieces_sort_by_their_numbers() -> None:
    assert [piece_name(n) for n in (0, 9, 10, 12345)] == [
        "piece-00000",
        "piece-00009",
        "piece-00010",
        "piece-12345",
    ]


def test_the_sizes_of_a_piece_s_files() -> None:
    sizes = {".ids": 28, ".counted": 7, ".ends": 24, ".sources": 6, ".checks": 12}
    assert piece_sizes(3, 7, "<u4") == sizes


def test_a_file_is_mapped_and_an_empty_one_is_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x01\x02\x03\x00")
    (tmp_path / "b").write_bytes(b"")
    assert map_array(tmp_path / "a", "<u2").tolist() == [0x0201, 3]
    assert map_array(tmp_path / "b", "<u2").tolist() == []
