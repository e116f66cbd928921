"""What a folder of shards says about itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calumma.errors import ShardError
from calumma.shards.manifest import Manifest, Shard, SourceCounts, require_vocabulary
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=3, num_text=256)


def piece(name: str, images: int, source: str) -> Shard:
    counts = SourceCounts(
        num_sequences=2,
        num_tokens=9,
        num_image_tokens=4 * images,
        num_images=images,
        max_length=5 + images,
    )
    return Shard(name=name, sources={source: counts}, sha256={".ids": "ab"}, dropped={"why": 2})


PIECES = [piece("p", 0, "ä"), piece("q", 3, "a"), piece("r", 1, "ä")]
MANIFEST = Manifest(vocabulary=V, fingerprint="f", fingerprints={"text": "t"}, shards=PIECES)


def test_a_manifest_adds_up_its_pieces() -> None:
    assert (MANIFEST.num_sequences, MANIFEST.num_tokens, MANIFEST.codes_per_image) == (6, 27, 4)
    assert MANIFEST.sources == ["ä", "a"]
    assert MANIFEST.counts("ä") == SourceCounts(
        num_sequences=4, num_tokens=18, num_image_tokens=4, num_images=1, max_length=6
    )
    assert (MANIFEST.total.num_images, MANIFEST.total.max_length) == (4, 8)
    assert MANIFEST.dropped == {"why": 6}
    none = Manifest(vocabulary=V, fingerprint="f", fingerprints={}, shards=[])
    assert (none.num_sequences, none.num_tokens, none.codes_per_image) == (0, 0, 0)


def test_a_saved_manifest_is_read_back(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert list(loaded.shards) == PIECES == loaded.shards[:]
    assert (len(loaded.shards), loaded.shards[-1]) == (3, PIECES[2])
    assert (loaded.vocabulary, loaded.fingerprint, loaded.fingerprints) == (V, "f", {"text": "t"})
    assert (loaded.total, loaded.sources) == (MANIFEST.total, MANIFEST.sources)
    loaded.save(tmp_path)
    assert list(Manifest.load(tmp_path).shards) == PIECES
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert record["format"] == "calumma shards"
    assert record["vocabulary_fingerprint"] == V.fingerprint
    assert (record["total"]["num_sequences"], record["total"]["num_ids"]) == (6, 27)
    assert record["sources"]["a"]["num_images"] == 3


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no manifest.json; expected a folder of shards. Build it with "
        "`calumma build-shards DOCS --tokenizers DIR --out DIR`."
    )


def test_another_list_of_pieces_is_refused(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    path = tmp_path / "pieces.jsonl"
    path.write_bytes(path.read_bytes().replace(b"9", b"8", 1))
    with pytest.raises(ShardError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value) == (
        f"{path} is not what was written; expected the list of 3 pieces. Build the shards again: "
        "what is whole is kept."
    )
    path.unlink()
    with pytest.raises(
        ShardError, match=r"pieces\.jsonl is missing; expected the list of 3 pieces"
    ):
        Manifest.load(tmp_path)


def test_shards_at_an_address_are_to_be_copied_first() -> None:
    with pytest.raises(ShardError) as caught:
        Manifest.load(Path("s3://bucket/shards"))
    assert str(caught.value) == (
        "s3:/bucket/shards: an address of another file system; expected a folder of this machine, as "
        "shards are read at any place of their files. Copy them here first."
    )


def test_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"version": 9}')
    with pytest.raises(ShardError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'manifest.json'} is of version 9; this calumma reads version 3. Build the "
        "shards again."
    )


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = Vocabulary(num_codes=4, num_text=256)
    require_vocabulary(tmp_path, V, Vocabulary(num_codes=3, num_text=256))
    with pytest.raises(ShardError) as caught:
        require_vocabulary(tmp_path, V, other)
    assert str(caught.value) == (
        f"{tmp_path} holds ids of vocabulary {V.fingerprint} (267 ids), but this run uses "
        f"vocabulary {other.fingerprint} (268 ids). Build the shards again with this run's "
        "tokenizers."
    )
