"""One shard, byte by byte."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest

from calumma.documents.error_policy import DroppedDocument
from calumma.shards.manifest import SourceCounts
from calumma.shards.writer import ShardWriter
from calumma.vocabulary import Vocabulary

SMALL = Vocabulary(num_codes=3, num_text=256)
WIDE = Vocabulary(num_codes=3, num_text=70_000)


def test_the_bytes_of_a_shard_by_hand(tmp_path: Path) -> None:
    writer = ShardWriter(SMALL)
    writer.add([0, 8, 4, 6, 7, 258, 2], [False, True, True, True, True, True, True], "b")
    writer.add([0, 2], [True, True], "a")
    shard = writer.write(tmp_path, "shard-00000-000")
    token_ids = b"\x00\x00\x08\x00\x04\x00\x06\x00\x07\x00\x02\x01\x02\x00" + b"\x00\x00\x02\x00"
    assert (tmp_path / "shard-00000-000.tokens").read_bytes() == token_ids
    ends = bytes([7]) + bytes(7) + bytes([9]) + bytes(7)
    assert (tmp_path / "shard-00000-000.offsets").read_bytes() == ends
    assert (tmp_path / "shard-00000-000.sources").read_bytes() == b"\x00\x00\x01\x00"
    assert (tmp_path / "shard-00000-000.loss_mask").read_bytes() == b"\x00" + b"\x01" * 8
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"shard-00000-000{suffix}" for suffix in (".crc32", ".loss_mask", ".offsets", ".sources", ".tokens")
    ]
    flags = b"\x00" + b"\x01" * 8
    checks = [zlib.crc32(token_ids[:14] + flags[:7]), zlib.crc32(token_ids[14:] + flags[7:])]
    written = (tmp_path / "shard-00000-000.crc32").read_bytes()
    assert written == b"".join(check.to_bytes(4, "little") for check in checks)
    assert shard.sources == {
        "b": SourceCounts(
            num_sequences=1,
            num_tokens=7,
            num_text_tokens=1,
            num_image_tokens=2,
            num_images=1,
            num_loss_tokens=6,
            max_length=7,
        ),
        "a": SourceCounts(num_sequences=1, num_tokens=2, num_loss_tokens=2, max_length=2),
    }
    assert (shard.num_sequences, shard.num_tokens, shard.dropped) == (2, 9, {})
    assert shard.sha256[".tokens"] == hashlib.sha256(token_ids).hexdigest()
    assert shard.sha256.keys() == {".tokens", ".loss_mask", ".offsets", ".sources", ".crc32"}


def test_a_wide_vocabulary_takes_four_bytes_an_id(tmp_path: Path) -> None:
    writer = ShardWriter(WIDE)
    writer.add([65_537], [True], "a")
    writer.write(tmp_path, "p")
    assert (tmp_path / "p.tokens").read_bytes() == b"\x01\x00\x01\x00"


def test_dropped_documents_are_listed_with_their_reasons(tmp_path: Path) -> None:
    writer = ShardWriter(SMALL)
    for id_, reason in [("d", "why"), ("ä", "other"), ("d", "why")]:
        writer.dropped.append(DroppedDocument(id=id_, source="s", reason=reason, detail="7 px"))
    shard = writer.write(tmp_path, "p")
    assert (shard.num_sequences, shard.num_tokens) == (0, 0)
    assert shard.dropped == {"other": 1, "why": 2}
    first, second, third = (tmp_path / "p.dropped").read_text(encoding="utf-8").splitlines()
    assert first == third == '{"id": "d", "source": "s", "reason": "why", "detail": "7 px"}'
    assert second == '{"id": "ä", "source": "s", "reason": "other", "detail": "7 px"}'


def test_a_shard_that_is_made_again_without_drops_lists_none(tmp_path: Path) -> None:
    writer = ShardWriter(SMALL, dropped=[DroppedDocument(id="d", source="s", reason="why", detail="")])
    writer.write(tmp_path, "p")
    assert ShardWriter(SMALL).write(tmp_path, "p").dropped == {}
    assert not (tmp_path / "p.dropped").exists()


def test_ids_and_flags_must_be_as_many() -> None:
    with pytest.raises(AssertionError):
        ShardWriter(SMALL).add([0, 2], [True], "a")
