"""One piece of shards, byte by byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from calumma.shards.writer import PieceWriter
from calumma.vocabulary import Vocabulary

SMALL = Vocabulary(num_codes=3, num_text=256)
WIDE = Vocabulary(num_codes=3, num_text=70_000)


def test_the_bytes_of_a_piece_by_hand(tmp_path: Path) -> None:
    writer = PieceWriter(SMALL)
    writer.add([0, 8, 4, 6, 7, 258, 2], [False, True, True, True, True, True, True], 1)
    writer.add([0, 2], [True, True], 0)
    piece = writer.write(tmp_path, "piece-00000")
    ids = b"\x00\x00\x08\x00\x04\x00\x06\x00\x07\x00\x02\x01\x02\x00" + b"\x00\x00\x02\x00"
    assert (tmp_path / "piece-00000.ids").read_bytes() == ids
    ends = bytes([7]) + bytes(7) + bytes([9]) + bytes(7)
    assert (tmp_path / "piece-00000.ends").read_bytes() == ends
    assert (tmp_path / "piece-00000.sources").read_bytes() == b"\x01\x00\x00\x00"
    assert (tmp_path / "piece-00000.counted").read_bytes() == b"\x00" + b"\x01" * 8
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"piece-00000{suffix}" for suffix in (".counted", ".ends", ".ids", ".sources")
    ]
    assert (piece.num_sequences, piece.num_ids, piece.num_codes, piece.num_images) == (2, 9, 2, 1)
    assert piece.sha256 == hashlib.sha256(ids).hexdigest()


def test_a_wide_vocabulary_takes_four_bytes_an_id(tmp_path: Path) -> None:
    writer = PieceWriter(WIDE)
    writer.add([65_537], [True], 0)
    writer.write(tmp_path, "p")
    assert (tmp_path / "p.ids").read_bytes() == b"\x01\x00\x01\x00"


def test_what_was_left_out_travels_with_the_piece(tmp_path: Path) -> None:
    writer = PieceWriter(SMALL)
    writer.skipped["d"] = "why"
    piece = writer.write(tmp_path, "p")
    assert (piece.num_sequences, piece.num_ids, piece.skipped) == (0, 0, {"d": "why"})


def test_ids_and_flags_must_be_as_many() -> None:
    with pytest.raises(AssertionError):
        PieceWriter(SMALL).add([0, 2], [True], 0)
