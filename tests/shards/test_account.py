"""Counts of shards, told in lines."""

from __future__ import annotations

from calumma.shards.account import shard_lines, source_table
from calumma.shards.manifest import Manifest, Shard, SourceCounts
from calumma.vocabulary import Vocabulary

PAIRS = SourceCounts(
    num_sequences=2,
    num_tokens=2000,
    num_text_tokens=40,
    num_image_tokens=1900,
    num_images=19,
    max_length=1200,
)
PIECE = Shard(name="p", sources={"pairs": PAIRS, "": SourceCounts(num_tokens=3)}, sha256={})


def manifest(piece: Shard) -> Manifest:
    vocabulary = Vocabulary(num_codes=3, num_text=256)
    return Manifest(vocabulary=vocabulary, fingerprint="f", fingerprints={}, shards=[piece])


def test_the_counts_of_the_whole_stand_before_those_of_each_source() -> None:
    assert shard_lines(manifest(PIECE)) == [
        "2 sequences, 2,003 ids in 1 piece; 19 images of 100 codes",
        "0 documents left out",
        "source       sequences        ids       text      codes    control     images    longest",
        "pairs                2      2,000         40      1,900         60         19      1,200",
        "(no source)          0          3          0          0          3          0          0",
    ]


def test_what_was_left_out_is_told_by_its_reasons() -> None:
    piece = Shard(name="p", sources={}, sha256={}, dropped={"too small": 2, "unreadable": 1000})
    assert shard_lines(manifest(piece))[1:] == [
        "1,002 documents left out: too small 2, unreadable 1,000",
        *source_table({}),
    ]
