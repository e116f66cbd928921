"""Shards of three sources; the first text token of a sequence identifies it."""

from pathlib import Path

from calumma.batches.batch import PADDING, Batch
from calumma.shards.manifest import Manifest
from calumma.shards.reader import ShardReader
from calumma.shards.shard_builder import ShardWriter
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=3, num_text=2000)
SIZES = {"pairs": 40, "text": 30, "answers": 20}


def sequence(source: str, number: int) -> tuple[list[int], list[bool]]:
    """Return a sequence whose first text token identifies it, and its loss mask."""
    name = V.text.start + {"pairs": 0, "text": 100, "answers": 200}[source] + number
    image = [V.begin_image, 4, 5, V.end_image]
    if source == "pairs":
        ids = [V.bos, name, *image, V.eos]
    elif source == "text":
        ids = [V.bos, name, *([V.text.start + 999] * (number % 7)), V.eos]
    else:
        ids = [V.bos, name, V.end_turn, *image, V.eos]
        return ids, [False] * 3 + [True] * 5
    return ids, [True] * len(ids)


def written(folder: Path, sizes: dict[str, int] = SIZES) -> ShardReader:
    """Write the shards and open them."""
    writer = ShardWriter(V)
    for source, size in sizes.items():
        for number in range(size):
            writer.add(*sequence(source, number), source)
    shards = [writer.write(folder, "shard-00000")]
    Manifest(vocabulary=V, fingerprint="f", fingerprints={}, shards=shards).save(folder)
    return ShardReader(folder)


def names(batch: Batch) -> list[int]:
    """Return the numbers of the sequences in a batch, in no order."""
    first = V.text.start
    inside = batch.input_ids[
        (batch.document_ids != PADDING) & (batch.input_ids >= first) & (batch.input_ids < first + 300)
    ]
    return (inside - first).tolist()
