"""The manifest of a shard folder."""

import json
from pathlib import Path

import pytest

from calumma.errors import ShardError
from calumma.shards.manifest import (
    Manifest,
    Shard,
    SourceCounts,
    format_manifest,
    format_sources,
    require_current_version,
    require_vocabulary,
)
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=3, num_text=256)


def shard(name: str, images: int, source: str) -> Shard:
    counts = SourceCounts(
        num_sequences=2, num_tokens=9, num_image_tokens=4 * images, num_images=images, max_length=5 + images
    )
    return Shard(name=name, sources={source: counts}, sha256={".tokens": "ab"}, dropped={"why": 2})


SHARDS = [shard("p", 0, "ä"), shard("q", 3, "a"), shard("r", 1, "ä")]
MANIFEST = Manifest(vocabulary=V, fingerprint="f", fingerprints={"text": "t"}, shards=SHARDS)


def test_a_manifest_adds_up_its_shards() -> None:
    assert (MANIFEST.total.num_sequences, MANIFEST.total.num_tokens, MANIFEST.codes_per_image) == (6, 27, 4)
    assert MANIFEST.sources == ["ä", "a"]
    assert MANIFEST.counts("ä") == SourceCounts(
        num_sequences=4, num_tokens=18, num_image_tokens=4, num_images=1, max_length=6
    )
    assert (MANIFEST.total.num_images, MANIFEST.total.max_length) == (4, 8)
    assert MANIFEST.dropped == {"why": 6}
    none = Manifest(vocabulary=V, fingerprint="f", fingerprints={}, shards=[])
    assert (none.total.num_sequences, none.total.num_tokens, none.codes_per_image) == (0, 0, 0)


def test_a_saved_manifest_is_read_back(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert list(loaded.shards) == SHARDS == loaded.shards[:]
    assert (len(loaded.shards), loaded.shards[-1]) == (3, SHARDS[2])
    assert (loaded.vocabulary, loaded.fingerprint, loaded.fingerprints) == (V, "f", {"text": "t"})
    assert (loaded.total, loaded.sources) == (MANIFEST.total, MANIFEST.sources)
    loaded.save(tmp_path)
    assert list(Manifest.load(tmp_path).shards) == SHARDS
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert record["format"] == "calumma shards"
    assert record["vocabulary_fingerprint"] == V.fingerprint
    assert (record["total"]["num_sequences"], record["total"]["num_tokens"]) == (6, 27)
    assert record["sources"]["a"]["num_images"] == 3


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no manifest.json; expected a folder of shards. Build it with "
        "`calumma build-shards DOCS --tokenizers DIR --out DIR`."
    )


def test_another_list_of_shards_is_refused(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    path = tmp_path / "shards.jsonl"
    path.write_bytes(path.read_bytes().replace(b"9", b"8", 1))
    with pytest.raises(ShardError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value) == (
        f"{path} has changed since it was written; expected the list of 3 shards. Repeat the "
        "command that built them: intact shards are kept."
    )
    path.unlink()
    with pytest.raises(ShardError, match=r"shards\.jsonl is missing; expected the list of 3 shards"):
        Manifest.load(tmp_path)


def test_shards_at_a_url_are_refused() -> None:
    with pytest.raises(ShardError) as caught:
        Manifest.load(Path("s3://bucket/shards"))
    assert str(caught.value) == (
        "s3:/bucket/shards: a URL; expected a local folder, as shards are read at random offsets. "
        "Copy them to this machine first."
    )


def test_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"version": 9}')
    with pytest.raises(ShardError) as caught:
        Manifest.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds shards of format version 9; expected version 4. Build them again into "
        "another folder: `calumma build-shards DOCS --tokenizers DIR --out NEW`."
    )


def test_an_unfinished_build_of_the_old_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "piece-00000.ids").touch()
    with pytest.raises(ShardError, match="holds shards of format version 3; expected version 4"):
        require_current_version(tmp_path)
    assert (tmp_path / "piece-00000.ids").exists()


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = Vocabulary(num_codes=4, num_text=256)
    require_vocabulary(tmp_path, V, Vocabulary(num_codes=3, num_text=256))
    with pytest.raises(ShardError) as caught:
        require_vocabulary(tmp_path, V, other)
    assert str(caught.value) == (
        f"{tmp_path} holds token ids of vocabulary {V.fingerprint} (267 ids); expected this run's "
        f"vocabulary {other.fingerprint} (268 ids). Build the shards again with this run's "
        "tokenizers."
    )


PAIRS = SourceCounts(
    num_sequences=2, num_tokens=2000, num_text_tokens=40, num_image_tokens=1900, num_images=19, max_length=1200
)
SHARD = Shard(name="p", sources={"pairs": PAIRS, "": SourceCounts(num_tokens=3)}, sha256={})


def manifest(shard: Shard) -> Manifest:
    vocabulary = Vocabulary(num_codes=3, num_text=256)
    return Manifest(vocabulary=vocabulary, fingerprint="f", fingerprints={}, shards=[shard])


def test_the_totals_come_before_the_sources() -> None:
    assert format_manifest(manifest(SHARD)) == [
        "2 sequences, 2,003 tokens in 1 shard; 19 images of 100 codes",
        "0 documents dropped",
        "source       sequences     tokens       text      image    control     images    longest",
        "pairs                2      2,000         40      1,900         60         19      1,200",
        "(no source)          0          3          0          0          3          0          0",
    ]


def test_dropped_documents_are_counted_by_reason() -> None:
    shard = Shard(name="p", sources={}, sha256={}, dropped={"too small": 2, "unreadable": 1000})
    assert format_manifest(manifest(shard))[1:] == [
        "1,002 documents dropped: too small 2, unreadable 1,000",
        *format_sources({}),
    ]
