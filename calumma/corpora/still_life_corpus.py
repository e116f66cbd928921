"""Make a corpus: as many documents as asked for, streamed into Parquet files, with a data card.

    OUT/NAME/00000.parquet ...   documents, `DOCUMENTS_PER_FILE` in each
    OUT/NAME/ATTRIBUTION.md      whose things are in the pictures, and their licences
    OUT/NAME/CARD.md             what it is, its counts, and what is known to be bad
    OUT/NAME/corpus.json         what was made; written last, so a folder with it is whole

A document follows from the seed and its number alone. So a longer corpus begins with a shorter
one of the same seed, and what was interrupted, or made shorter before, goes on from its files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from calumma.corpora.embedded import copy_attribution
from calumma.corpora.still_life import object_pool
from calumma.corpora.still_life_captions import make_still_life_document
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_parquet
from calumma.files import make_folder, read_json, write_json, write_text
from calumma.runtime import STOP

DOCUMENTS_PER_FILE = 1000
STILL_LIFES = "still-lifes"
STILL_LIFE_VERSION = 1
"""Goes up when the documents of a seed change."""


@dataclass(frozen=True, kw_only=True)
class StillLifeConfig:
    """Which still lifes are made."""

    num_documents: int
    seed: int = 0
    side: int = 128
    """Pixels to a side of the pictures."""


@dataclass(frozen=True)
class StillLifeCorpus:
    """What lies in the folder of a corpus that was made."""

    folder: Path
    num_documents: int
    num_images: int
    num_words: int

    is_new: bool
    """Whether this call did any work."""


def generate_still_lifes(
    out: Path, config: StillLifeConfig, progress: Callable[[int], None] = lambda documents: None
) -> StillLifeCorpus:
    """Make the still lifes of a seed in `out/still-lifes`.

    Args:
        out: the folder that holds corpora.
        config: how many and which.
        progress: told how many documents each file adds.

    Raises:
        OutputError: the folder cannot be written.
        Interrupted: a signal asked to stop; the same call goes on from there.
    """
    folder = make_folder(out / STILL_LIFES)
    request = {"version": STILL_LIFE_VERSION, "seed": config.seed, "side": config.side}
    record = folder / "corpus.json"
    done = read_json(record) if record.is_file() else {}
    if {key: done.get(key) for key in request} == request and _whole(done, config):
        return _made(folder, Counter(done["counts"]), fresh=False)
    _begin(folder, request, -(-config.num_documents // DOCUMENTS_PER_FILE))
    counts: Counter[str] = Counter()
    for number, first in enumerate(range(0, config.num_documents, DOCUMENTS_PER_FILE)):
        STOP.check(f"{number} files of documents are in {folder}")
        size = min(DOCUMENTS_PER_FILE, config.num_documents - first)
        path = folder / f"{number:05d}.parquet"
        if not path.exists() or pq.read_metadata(path).num_rows != size:
            write_parquet(path, _documents(config, first, size))
        _count(read_documents([path]), counts)
        progress(size)
    copy_attribution(folder)
    write_text(folder / "CARD.md", _card(config, counts))
    write_json(record, {**request, "counts": dict(counts)})
    return _made(folder, counts, fresh=True)


def _made(folder: Path, counts: Counter[str], *, fresh: bool) -> StillLifeCorpus:
    return StillLifeCorpus(folder, counts["documents"], counts["images"], counts["words"], fresh)


def _whole(done: dict[str, Any], config: StillLifeConfig) -> bool:
    return bool(done["counts"]["documents"] == config.num_documents)


def _begin(folder: Path, request: dict[str, Any], files: int) -> None:
    """Keep the files of the same seed, and no others; until all are there, nothing vouches."""
    (folder / "corpus.json").unlink(missing_ok=True)
    begun = folder / "begun.json"
    same = begun.is_file() and read_json(begun) == request
    for old in folder.glob("*.parquet"):
        if not same or int(old.stem) >= files:
            old.unlink()
    write_json(begun, request)


def _documents(config: StillLifeConfig, first: int, size: int) -> Iterator[Document]:
    things = object_pool()
    for number in range(first, first + size):
        yield make_still_life_document(number, config.seed, things, config.side)


def _count(documents: Iterator[Document], counts: Counter[str]) -> None:
    for made in documents:
        counts["documents"] += 1
        counts["images"] += len(made.images)
        counts["words"] += len(made.text.split())
        counts[f"of kind {made.attributes['kind']}"] += 1
        counts["held out"] += made.attributes["split"] == "held-out"


def _card(config: StillLifeConfig, counts: Counter[str]) -> str:
    things = object_pool()
    kinds = ", ".join(
        f"{counts[name]:,} {name.removeprefix('of kind ')}s"
        for name in sorted(counts)
        if name.startswith("of kind ")
    )
    sources = Counter(thing.source for thing in things.objects)
    named = ", ".join(f"{count} of {source}" for source, count in sorted(sources.items()))
    return f"""# Still lifes

Pictures of one to four things on a ground, composed by `calumma corpus make {STILL_LIFES}`, with
captions, questions and pages that are true by construction.

| | |
|---|---|
| documents | {counts["documents"]:,}: {kinds} |
| images | {counts["images"]:,}, JPEG, {config.side} pixels to a side |
| words | {counts["words"]:,} |
| seed | {config.seed}; document n of a seed is always the same |
| things | {len(things.shapes)} shapes in colours; {len(things.objects):,} objects: {named} |
| held out | {counts["held out"]:,} documents with a thing that the embedded corpus holds out |
| licences | of each document: those of the things in it, joined by AND; see ATTRIBUTION.md |
| left out | emoji of people, faces, symbols and skin tones; clip art whose name is no plain words |

Known to be bad: the objects are 64 pixels wide and are blurred where they stand alone; names of
clip art are their authors' and not all English; articles follow the first letter, not the sound;
the same name may stand for emoji of three families. No photographs, no scenes, no texture but the
grounds': a model that sees nothing else learns flat colours.
"""
