"""One shard: made, kept, or made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.documents.document import Document, Image, Text
from calumma.documents.error_policy import DroppedDocument
from calumma.errors import ImageError
from calumma.shards.encode import DocumentEncoder
from calumma.shards.shard_builder import ShardBuilder, batched
from calumma.tokens.folder import Tokenizers
from tests.images import png

GROUP = [Document(id=str(n), source="s", content=(Text("a"), Image(data=png(n)))) for n in range(3)]
BROKEN = Document(id="broken", source="s", content=(Image(data=b"no picture", name="here"),))


def maker(tokenizers: Tokenizers, folder: Path, *, skip_bad: bool = False) -> ShardBuilder:
    encoder = DocumentEncoder(tokenizers)
    return ShardBuilder(encoder, folder, encoding_fingerprint(tokenizers), skip_bad)


def test_a_shard_of_the_same_is_kept_and_a_changed_byte_makes_it_again(
    tokenizers: Tokenizers, tmp_path: Path
) -> None:
    made = maker(tokenizers, tmp_path).make("p", GROUP)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    times = {path: path.stat().st_mtime_ns for path in files}
    assert maker(tokenizers, tmp_path).make("p", GROUP) == made
    assert {path: path.stat().st_mtime_ns for path in files} == times
    for suffix in (".tokens", ".loss_mask", ".offsets", ".sources", ".crc32"):
        path = tmp_path / f"p{suffix}"
        content = bytearray(path.read_bytes())
        content[0] ^= 1
        path.write_bytes(content)
        assert maker(tokenizers, tmp_path).known("p") is None
        assert maker(tokenizers, tmp_path).make("p", GROUP) == made
        assert {path: path.read_bytes() for path in files} == files


def test_what_was_left_out_before_is_part_of_the_shard(
    tokenizers: Tokenizers, tmp_path: Path
) -> None:
    drop = DroppedDocument(id="x", source="s", reason="too small", detail="3 px")
    plain = maker(tokenizers, tmp_path).make("p", GROUP)
    shard = maker(tokenizers, tmp_path).make("p", GROUP, [drop])
    assert (shard.dropped, shard.sources) == ({"too small": 1}, plain.sources)
    assert maker(tokenizers, tmp_path).make("p", GROUP).dropped == {}


def test_a_bad_document_stops_the_shard_or_is_listed(
    tokenizers: Tokenizers, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match="not an image"):
        maker(tokenizers, tmp_path).make("p", [*GROUP, BROKEN])
    shard = maker(tokenizers, tmp_path, on_error="drop").make("p", [*GROUP, BROKEN])
    assert (shard.num_sequences, shard.dropped) == (3, {"unreadable": 1})


def test_groups_are_as_long_as_asked_but_the_last() -> None:
    assert [len(group) for group in batched(GROUP, 2)] == [2, 1]
    assert list(batched([], 2)) == []
