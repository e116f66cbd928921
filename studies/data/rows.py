"""Check packed sequences: padding, mixture, modality order, complete images, and round trip.

    python studies/data/rows.py --shards out/k/undisturbed --tokenizers out/k/tokenizers DOCS...

DOCS are the files that the shards were built from, in the same order. The last line is one JSON
object.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.batches.sampler import SequenceRef, split_pair
from calumma.documents.document import Document, Image, Text
from calumma.documents.readers import read_documents
from calumma.errors import ImageError
from calumma.shards.reader import ShardReader
from calumma.tokens.sequence import split_modalities
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import Vocabulary

NUM_BATCHES, BATCH_SIZE = 125, 16
"""2,000 packed sequences."""


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--quick", action="store_true", help="fewer sequences")
    parser.add_argument("documents", nargs="+")
    args = parser.parse_args()
    reader, seq_len = ShardReader(args.shards), args.seq_len
    batches = NUM_BATCHES // 10 if args.quick else NUM_BATCHES
    units = ("sequences", "tokens")
    print(
        json.dumps(
            {
                "non_padding_fraction": {unit: non_padding_fraction(reader, seq_len, unit, batches) for unit in units},
                "max_mixture_error": {unit: mixture_error(reader, seq_len, unit, batches) for unit in units},
                "image_first": {p: image_first_fraction(reader, seq_len, p) for p in (0.5, 0.3)},
                **round_trip(reader, seq_len, args.tokenizers, args.documents),
            }
        )
    )


def build_loader(reader: ShardReader, weights: dict[str, float], **settings: Any) -> PackedLoader:
    """Build a data loader with these mixture weights."""
    loader = PackedLoader(reader, DataConfig(global_batch_size=BATCH_SIZE, **settings))
    loader.set_mixture(weights)
    return loader


def next_documents(loader: PackedLoader) -> Iterator[tuple[SequenceRef, int, list[int]]]:
    """Yield each document of the next batch: its reference, index of its chunk, and token ids."""
    planned = loader.plan_rows()
    batch = loader.next()
    for row, documents in enumerate(planned):
        for document_id, (reference, chunk) in enumerate(documents):
            positions = np.flatnonzero(batch.document_ids[row] == document_id)
            token_ids = batch.input_ids[row][positions].tolist()
            yield reference, chunk, [*token_ids, int(batch.labels[row][positions[-1]])]


def non_padding_fraction(reader: ShardReader, seq_len: int, unit: str, batches: int) -> float:
    """Return the fraction of tokens that are no padding, with equal weights of all sources."""
    even = dict.fromkeys(reader.manifest.sources, 1.0)
    loader = build_loader(reader, even, seq_len=seq_len, mixture_unit=unit)
    return round(float(np.mean([loader.next().non_padding_fraction for _ in range(batches)])), 4)


def mixture_error(reader: ShardReader, seq_len: int, unit: str, batches: int) -> float:
    """Return the largest difference between a source's fraction and its weight."""
    weights = {name: float(n) for n, name in enumerate(reader.manifest.sources, start=1)}
    loader = build_loader(reader, weights, seq_len=seq_len, mixture_unit=unit)
    amounts: Counter[str] = Counter()
    for _ in range(batches):
        for reference, chunk, token_ids in next_documents(loader):
            amount = len(token_ids) - 1 if unit == "tokens" else int(chunk == 0)
            amounts[reader.source_of(reference.sequence)] += amount
    total, weight = sum(amounts.values()), sum(weights.values())
    return round(max(abs(amounts[n] / total - w / weight) for n, w in weights.items()), 5)


def image_first_fraction(reader: ShardReader, seq_len: int, prob: float) -> float:
    """Return the fraction of text-image pairs with the image first."""
    even = dict.fromkeys(reader.manifest.sources, 1.0)
    loader = build_loader(reader, even, seq_len=seq_len, image_first_prob=prob)
    vocabulary = loader.vocabulary
    documents = [np.array(ids) for _ in range(40) for _, _, ids in next_documents(loader)]
    complete = [ids for ids in documents if ids[-1] == vocabulary.eos]
    pairs = [ids for ids in complete if split_pair(ids, vocabulary) is not None]
    return round(float(np.mean([ids[1] == vocabulary.begin_image for ids in pairs])), 4)


def round_trip(reader: ShardReader, seq_len: int, tokenizers: Path, paths: Sequence[str]) -> dict[str, int]:
    """Reassemble every document of an epoch and compare it with its file."""
    text = TextTokenizer.load(tokenizers)
    vocabulary, codes = reader.manifest.vocabulary, reader.manifest.codes_per_image
    chunks: dict[int, dict[int, list[int]]] = {}
    broken = 0
    for source in reader.manifest.sources:
        for reference, chunk, token_ids in epoch_of(reader, source, seq_len):
            chunks.setdefault(reference.sequence, {})[chunk] = token_ids
            broken += not has_complete_images(np.array(token_ids), vocabulary, codes)
    same = read = 0
    for document in read_documents(paths):
        if not is_readable(document):
            continue
        parts = [chunks[read][chunk] for chunk in sorted(chunks[read])]
        token_ids = parts[0] + [id_ for part in parts[1:] for id_ in part[1:]]
        expected, decoded = runs_of(document, codes), decode_runs(token_ids, text, vocabulary)
        same += decoded in (expected, expected[::-1] if len(expected) == 2 else expected)
        read += 1
    return {
        "documents_read": read,
        "documents_recovered": same,
        "sequences": len(chunks),
        "documents_with_a_partial_image": broken,
    }


def epoch_of(reader: ShardReader, source: str, seq_len: int) -> Iterator[tuple[SequenceRef, int, list[int]]]:
    """Yield every document of the first epoch of a source."""
    loader = build_loader(reader, {source: 1.0}, seq_len=seq_len)
    missing = {reader.sequence_index(source, index) for index in range(reader.num_sequences(source))}
    while missing:
        for reference, chunk, token_ids in next_documents(loader):
            if reference.epoch == 0:
                missing.discard(reference.sequence)
                yield reference, chunk, token_ids
    # The last document may have more chunks in later sequences of its window.
    for _ in range(loader.config.pack_window):
        yield from (entry for entry in next_documents(loader) if entry[0].epoch == 0)


def has_complete_images(ids: np.ndarray, vocabulary: Vocabulary, codes: int) -> bool:
    """Return whether every image has its begin token, all its codes, and its end token."""
    inside = (ids >= vocabulary.codes.start) & (ids < vocabulary.codes.stop)
    starts = np.flatnonzero(ids == vocabulary.begin_image)
    ends = np.flatnonzero(ids == vocabulary.end_image)
    return (
        len(starts) == len(ends)
        and bool((ends - starts == codes + 1).all())
        and bool(inside.sum() == codes * len(starts))
        and all(inside[start + 1 : start + codes + 1].all() for start in starts)
    )


def is_readable(document: Document) -> bool:
    """Return whether all images of a document can be opened."""
    try:
        for image in document.images:
            image.open()
    except ImageError:
        return False
    return True


def runs_of(document: Document, codes: int) -> list[str | int]:
    """Return a document as runs of text and, for each image, its number of codes."""
    runs: list[str | int] = []
    for part in document.content:
        if isinstance(part, Image):
            runs.append(codes)
        elif isinstance(part, Text) and runs and isinstance(runs[-1], str):
            runs[-1] += part.text
        elif isinstance(part, Text) and part.text:
            runs.append(part.text)
    return runs


def decode_runs(ids: Sequence[int], text: TextTokenizer, vocabulary: Vocabulary) -> list[str | int]:
    """Return the same runs from token ids."""
    return [len(run) if kind == "image" else text.decode(run) for kind, run in split_modalities(ids, vocabulary)]


if __name__ == "__main__":
    main()
