"""Whether rows are full, mixed and turned as asked, hold whole images, and give documents back.

    python studies/data/rows.py --shards out/kill/whole --tokenizers out/kill/tokenizers DOCS...

DOCS are the files that the shards were built of, in the same order. One JSON object is the last
line.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.batches.sampler import SequenceRef
from calumma.batches.sequence_augment import split_pair
from calumma.documents.document import Document, Image, Text
from calumma.documents.readers import read_documents
from calumma.errors import ImageError
from calumma.shards.reader import ShardReader
from calumma.tokens.sequence import split_modalities
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary

BATCHES, ROWS = 125, 16
"""2,000 rows."""


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--row-length", type=int, default=4096)
    parser.add_argument("--quick", action="store_true", help="fewer rows")
    parser.add_argument("documents", nargs="+")
    args = parser.parse_args()
    reader, length = ShardReader(args.shards), args.row_length
    batches = BATCHES // 10 if args.quick else BATCHES
    by_share = ("sequences", "ids")
    print(
        json.dumps(
            {
                "fill": {by: fill(reader, length, by, batches) for by in by_share},
                "worst_share_error": {
                    by: share_error(reader, length, by, batches) for by in by_share
                },
                "image_first": {asked: image_first(reader, length, asked) for asked in (0.5, 0.3)},
                **given_back(reader, length, args.tokenizers, args.documents),
            }
        )
    )


def stream_of(reader: ShardReader, weights: dict[str, float], **settings: Any) -> PackedLoader:
    """A stream with these weights."""
    stream = PackedLoader(reader, DataConfig(global_batch_size=ROWS, **settings))
    stream.set_mixture(weights)
    return stream


def owned(stream: PackedLoader) -> Iterator[tuple[SequenceRef, int, list[int]]]:
    """Every owner of the next batch: its draw, which item of it, and its ids."""
    planned = stream.plan_rows()
    batch = stream.next()
    for row, owners in enumerate(planned):
        for owner, (draw, which) in enumerate(owners):
            places = np.flatnonzero(batch.document_ids[row] == owner)
            ids = [*batch.input_ids[row][places].tolist(), int(batch.labels[row][places[-1]])]
            yield draw, which, ids


def fill(reader: ShardReader, row_length: int, share_of: str, batches: int) -> float:
    """Share of the rows, all sources weighing the same, that is no padding."""
    even = dict.fromkeys(reader.manifest.sources, 1.0)
    stream = stream_of(reader, even, row_length=row_length, share_of=share_of)
    return round(float(np.mean([stream.next().non_padding_fraction for _ in range(BATCHES)])), 4)


def share_error(reader: ShardReader, row_length: int, share_of: str, batches: int) -> float:
    """The largest distance of a source's share of the rows from its weight."""
    weights = {name: float(n) for n, name in enumerate(reader.manifest.sources, start=1)}
    stream = stream_of(reader, weights, row_length=row_length, share_of=share_of)
    amounts: Counter[str] = Counter()
    for _ in range(batches):
        for draw, which, ids in owned(stream):
            amount = len(ids) - 1 if share_of == "ids" else int(which == 0)
            amounts[reader.source_of(draw.sequence)] += amount
    total, weight = sum(amounts.values()), sum(weights.values())
    return round(max(abs(amounts[n] / total - w / weight) for n, w in weights.items()), 5)


def image_first(reader: ShardReader, row_length: int, asked: float) -> float:
    """The share of pairs that come image first."""
    even = dict.fromkeys(reader.manifest.sources, 1.0)
    stream = stream_of(reader, even, row_length=row_length, image_first=asked)
    owners = [np.array(ids) for _ in range(40) for _, _, ids in owned(stream)]
    whole = [ids for ids in owners if ids[-1] == stream.vocabulary.eos]
    pairs = [ids for ids in whole if split_pair(ids, stream.vocabulary) is not None]
    return round(float(np.mean([ids[1] == stream.vocabulary.begin_image for ids in pairs])), 4)


def given_back(
    reader: ShardReader, row_length: int, tokenizers: Path, paths: Sequence[str]
) -> dict[str, int]:
    """Every document of an epoch's rows, put together again and held against its file."""
    text = TextTokenizer.load(tokenizers)
    vocabulary, codes = reader.manifest.vocabulary, reader.manifest.codes_per_image
    pieces: dict[int, dict[int, list[int]]] = {}
    broken = 0
    for source in reader.manifest.sources:
        for draw, which, ids in epoch_of(reader, source, row_length):
            pieces.setdefault(draw.sequence, {})[which] = ids
            broken += not holds_whole_images(np.array(ids), vocabulary, codes)
    same = read = 0
    for document in read_documents(paths):
        if not can_be_read(document):
            continue
        parts = [pieces[read][which] for which in sorted(pieces[read])]
        ids = parts[0] + [id_ for part in parts[1:] for id_ in part[1:]]
        expected, found = told(document, codes), told_by(ids, text, vocabulary)
        same += found in (expected, expected[::-1] if len(expected) == 2 else expected)
        read += 1
    return {
        "documents_read": read,
        "documents_given_back": same,
        "sequences": len(pieces),
        "owners_with_part_of_an_image": broken,
    }


def epoch_of(
    reader: ShardReader, source: str, row_length: int
) -> Iterator[tuple[SequenceRef, int, list[int]]]:
    """Every owner of a source's first epoch."""
    stream = stream_of(reader, {source: 1.0}, row_length=row_length)
    missing = {
        reader.sequence_index(source, place) for place in range(reader.num_sequences(source))
    }
    while missing:
        for draw, which, ids in owned(stream):
            if draw.epoch == 0:
                missing.discard(draw.sequence)
                yield draw, which, ids
    # The last sequence seen may have other pieces in later rows of its window.
    for _ in range(stream.config.pack_window):
        yield from (owner for owner in owned(stream) if owner[0].epoch == 0)


def holds_whole_images(ids: np.ndarray, vocabulary: Vocabulary, codes: int) -> bool:
    """Whether every image among these ids has its begin, all its codes, and its end."""
    inside = (ids >= vocabulary.codes.start) & (ids < vocabulary.codes.stop)
    starts = np.flatnonzero(ids == vocabulary.begin_image)
    ends = np.flatnonzero(ids == vocabulary.end_image)
    return (
        len(starts) == len(ends)
        and bool((ends - starts == codes + 1).all())
        and bool(inside.sum() == codes * len(starts))
        and all(inside[start + 1 : start + codes + 1].all() for start in starts)
    )


def can_be_read(document: Document) -> bool:
    """Whether all pictures of a document can be opened."""
    try:
        for image in document.images:
            image.open()
    except ImageError:
        return False
    return True


def told(document: Document, codes: int) -> list[str | int]:
    """A document as its rows can tell it: runs of text, and the number of codes of each image."""
    runs: list[str | int] = []
    for part in document.content:
        if isinstance(part, Image):
            runs.append(codes)
        elif isinstance(part, Text) and runs and isinstance(runs[-1], str):
            runs[-1] += part.text
        elif isinstance(part, Text) and part.text:
            runs.append(part.text)
    return runs


def told_by(ids: Sequence[int], text: TextTokenizer, vocabulary: Vocabulary) -> list[str | int]:
    """The same, from ids."""
    return [
        len(run) if kind == "image" else text.decode(run)
        for kind, run in split_modalities(ids, vocabulary)
    ]


if __name__ == "__main__":
    main()
