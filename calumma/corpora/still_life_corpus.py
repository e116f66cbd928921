"""The generated corpus of still lifes: Parquet files of any number of documents, with a data card.

    OUT/NAME/00000.parquet ...   documents, 1,000 in each
    OUT/NAME/ATTRIBUTION.md      authors and licenses of the things in the images
    OUT/NAME/CARD.md             description, counts and known limitations
    OUT/NAME/corpus.json         config and counts; written last, so a folder with it is complete

A document depends only on the seed and its number. So a longer corpus begins with a shorter one of
the same seed, and an interrupted or shorter corpus is continued from its files.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from calumma.corpora.embedded import copy_attribution
from calumma.corpora.still_life import OBJECT_SOURCE, OBJECTS, SIDE
from calumma.corpora.still_life_aspects import ASPECTS, with_aspect
from calumma.corpora.still_life_documents import StillLifeWriter
from calumma.corpora.synthetic_scenes import SHAPES
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_parquet
from calumma.files import make_folder, read_json, write_json, write_text
from calumma.runtime import STOP

_DOCUMENTS_PER_FILE = 1000
STILL_LIFES = "still-lifes"
STILL_LIFE_VERSION = 5
"""Incremented when the documents of a seed, or the columns of their files, change."""


@dataclass(frozen=True, kw_only=True)
class StillLifeConfig:
    """The number of still lifes, their seed and their size."""

    num_documents: int
    seed: int = 0
    side: int = SIDE
    """Side of the images in pixels."""

    aspects: tuple[str, ...] = ()
    """Names of `ASPECTS` that images have; empty for squares whose texts do not say so."""


@dataclass(frozen=True)
class StillLifeCorpus:
    """A generated corpus and its counts."""

    folder: Path
    num_documents: int
    num_images: int
    num_words: int

    is_new: bool
    """Whether this call generated anything."""


def generate_still_lifes(
    out: Path, config: StillLifeConfig, on_progress: Callable[[int], None] = lambda num_documents: None
) -> StillLifeCorpus:
    """Generate the still lifes of a seed in `out/still-lifes`.

    Args:
        out: the parent folder of corpora.
        config: number, seed and size.
        on_progress: called after each file with its number of documents.

    Raises:
        OutputError: the folder cannot be written.
        Interrupted: a signal stopped the run; the same call continues it.
    """
    folder = make_folder(out / STILL_LIFES)
    request: dict[str, Any] = {"version": STILL_LIFE_VERSION, "seed": config.seed, "side": config.side}
    if config.aspects:
        request["aspects"] = ",".join(config.aspects)
    record = folder / "corpus.json"
    done = read_json(record) if record.is_file() else {}
    is_same = {key: done.get(key) for key in request} == request
    if is_same and done["counts"]["documents"] == config.num_documents:
        return _corpus(folder, Counter(done["counts"]), is_new=False)
    _prepare_folder(folder, request, -(-config.num_documents // _DOCUMENTS_PER_FILE))
    counts: Counter[str] = Counter()
    for number, first in enumerate(range(0, config.num_documents, _DOCUMENTS_PER_FILE)):
        STOP.check(f"{number} files of documents are in {folder}")
        size = min(_DOCUMENTS_PER_FILE, config.num_documents - first)
        path = folder / f"{number:05d}.parquet"
        if not path.exists() or pq.read_metadata(path).num_rows != size:
            write_parquet(path, _documents(config, first, size))
        _count(read_documents([path]), counts)
        on_progress(size)
    copy_attribution(folder)
    write_text(folder / "CARD.md", _card(config, counts))
    write_json(record, {**request, "counts": dict(counts)})
    return _corpus(folder, counts, is_new=True)


def _corpus(folder: Path, counts: Counter[str], *, is_new: bool) -> StillLifeCorpus:
    return StillLifeCorpus(folder, counts["documents"], counts["images"], counts["words"], is_new)


def _prepare_folder(folder: Path, request: dict[str, Any], num_files: int) -> None:
    """Delete corpus.json, and all files but those of the same seed."""
    (folder / "corpus.json").unlink(missing_ok=True)
    begun = folder / "begun.json"
    same = begun.is_file() and read_json(begun) == request
    for old in folder.glob("*.parquet"):
        if not same or int(old.stem) >= num_files:
            old.unlink()
    write_json(begun, request)


def _documents(config: StillLifeConfig, first: int, size: int) -> Iterator[Document]:
    writer = StillLifeWriter(config.seed, config.side)
    for number in range(first, first + size):
        document = writer.document(number)
        if config.aspects:
            random = np.random.default_rng([config.seed, number, 3])
            document = with_aspect(document, str(document.attributes["kind"]), config.aspects, random)
        yield document


def _count(documents: Iterator[Document], counts: Counter[str]) -> None:
    for document in documents:
        counts["documents"] += 1
        counts["images"] += len(document.images)
        counts["words"] += len(document.text.split())
        counts[f"of kind {document.attributes['kind']}"] += 1


def _sizes(config: StillLifeConfig) -> str:
    scales = [ASPECTS[aspect] for aspect in config.aspects] or [(1.0, 1.0)]
    return ", ".join(f"{round(width * config.side)} x {round(height * config.side)}" for width, height in scales)


def _card(config: StillLifeConfig, counts: Counter[str]) -> str:
    kinds = ", ".join(
        f"{counts[name]:,} {name.removeprefix('of kind ')}" for name in sorted(counts) if name.startswith("of kind ")
    )
    return f"""# Still lifes

Synthetic images of one to four things on a plain background, generated by
`calumma corpus make {STILL_LIFES}`, with captions, questions, edits, stories and refusals that are
true by construction.

| | |
|---|---|
| documents | {counts["documents"]:,}: {kinds} |
| images | {counts["images"]:,}, PNG, {_sizes(config)} pixels |
| words | {counts["words"]:,} |
| seed | {config.seed}; document n of a seed is always the same |
| things | {len(SHAPES)} shapes in eight colors; {len(OBJECTS)} objects of {OBJECT_SOURCE} |
| held out | combinations of things and background, numbers of a thing in a layout, wordings, names of unknown things |
| licenses | CC0-1.0 (shapes, texts) and MIT (objects); see ATTRIBUTION.md |

Known limitations: things have fixed places and sizes, and backgrounds one color; there is no
texture, no overlap and no depth; the English is that of templates. A model trained on nothing else
draws nothing else.
"""
