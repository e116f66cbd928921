"""Build the embedded corpus: `scripts/build_corpus [FOLDER]`.

The same packages and libraries give the same bytes. The two novels are the exception: they are
copied from the embedded corpus itself, because their package stores them in a format of R. Only
data that may be distributed with its notice is included: no copyleft, no attribution license,
nothing of unknown origin. For the last reason the photographs of the documentation of opencv and
astropy are excluded, and so are pages that show data sets with terms of their own.
"""

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import calumma.corpora
from calumma.corpora.captions import Split, group_split
from calumma.corpora.catalog import find_corpus
from calumma.corpora.catalog_entry import Corpus, Package
from calumma.corpora.fetch import write_attribution
from calumma.corpora.package_download import fetch_package
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_parquet
from calumma.files import fingerprint
from scripts.embedded_corpus.thumbnails import ThumbnailMaker, is_good_clip_art, shorten_page

EMBEDDED = Path(calumma.corpora.__file__).with_name("embedded")
EMOJI = ("fluent-flat", "fluent-3d", "noto")
CLIP_ART = ("openclipart", "iso-flags")
DOCUMENTATION = ("python-skimage-doc", "python-scipy-doc", "python-sklearn-doc")

AUSTEN = Corpus(
    name="austen",
    kind="text",
    packages=(Package("apt", "r-cran-janeaustenr", "1.0.0-1"),),
    license="public domain",
    notice="Novels of Jane Austen (1775-1817); the package around them is MIT-licensed.",
    redistributable=True,
    num_documents=92,
    reader=lambda folders: _embedded_novels(),
)
"""The embedded novels: Pride and Prejudice, and Northanger Abbey."""

THUMBNAIL_SIDE = 64
THUMBNAIL_QUALITY = 55
FIGURE_SIDE = 128
FIGURE_QUALITY = 50
MAX_PAGE_WORDS = 400

GLOSSES_ONE_IN = 8

TEXT_HELD_OUT_FRACTION = 0.05
"""Fraction of each text, at its end, that is held out."""

_OTHER_TERMS = re.compile(
    r"lfw|olivetti|faces|face_detection|mnist|openml|sample_image|china\.jpg|flower\.jpg"
    r"|protein_transport|brain\(|california|newsgroups",
    re.IGNORECASE,
)
"""Names of data sets with terms of their own; pages that show them are excluded."""


def build_embedded_corpus(folder: Path) -> None:
    """Write the Parquet files, the attribution and the licenses of the embedded corpus."""
    thumbnails = ThumbnailMaker(side=THUMBNAIL_SIDE, quality=THUMBNAIL_QUALITY)
    files = {
        "emoji": _emoji(thumbnails),
        "clip-art": _clip_art(thumbnails),
        "documentation": _documentation(),
        "text": iter([*_glosses(), *AUSTEN.reader({})]),
    }
    for kind, documents in files.items():
        path = folder / f"{kind}.parquet"
        count = write_parquet(path, documents)
        print(f"{path.name}: {count:,} documents, {path.stat().st_size / 1e6:.2f} MB", flush=True)
    print(f"dropped: {dict(thumbnails.dropped)}")
    names = (*EMOJI, *CLIP_ART, *DOCUMENTATION, "wordnet")
    write_attribution(folder, [*map(find_corpus, names), AUSTEN])


def _read(name: str) -> Iterator[Document]:
    corpus = find_corpus(name)
    assert corpus.redistributable, f"{name} may not be embedded"
    return corpus.read({package.name: fetch_package(package) for package in corpus.packages})


def _embedded_novels() -> Iterator[Document]:
    pages = read_documents([EMBEDDED / "text.parquet"])
    return iter([page for page in pages if page.source == "austen"])


def _emoji(thumbnails: ThumbnailMaker) -> Iterator[Document]:
    for name in EMOJI:
        yield from filter(None, map(thumbnails.make, _read(name)))


def _clip_art(thumbnails: ThumbnailMaker) -> Iterator[Document]:
    english = english_words(fetch_package(find_corpus("wordnet").packages[0]) / "usr/share/wordnet")
    drawings = (drawing for drawing in _read("openclipart") if is_good_clip_art(drawing, english))
    thumbnails.crop_margins = True
    yield from filter(None, map(thumbnails.make, drawings))
    yield from filter(None, map(thumbnails.make, _read("iso-flags")))


def english_words(folder: Path) -> set[str]:
    """Return all single words of a WordNet database in lower case, of at least three letters."""
    words: set[str] = set()
    for suffix in ("noun", "verb", "adj", "adv"):
        text = (folder / f"index.{suffix}").read_text("latin-1")
        words.update(line.split(" ", 1)[0] for line in text.splitlines() if line[:1] != " ")
    return {word for word in words if len(word) > 2 and word.isalpha()}


def _documentation() -> Iterator[Document]:
    for name in DOCUMENTATION:
        for document in _read(name):
            if _OTHER_TERMS.search(document.id) or _OTHER_TERMS.search(document.text):
                continue
            small = shorten_page(document, side=FIGURE_SIDE, quality=FIGURE_QUALITY, max_words=MAX_PAGE_WORDS)
            if small:
                group = fingerprint(document.id)
                yield _placed(small, group, group_split(group))


def _glosses() -> Iterator[Document]:
    sampled = [d for d in _read("wordnet") if _sampled(d.id, GLOSSES_ONE_IN)]
    for _, pages in itertools.groupby(sampled, key=lambda d: d.attributes["text"]):
        yield from _hold_out_end(list(pages))


def _hold_out_end(documents: list[Document]) -> Iterator[Document]:
    first_held_out = len(documents) - max(1, round(len(documents) * TEXT_HELD_OUT_FRACTION))
    for number, document in enumerate(documents):
        split: Split = "train" if number < first_held_out else "held-out"
        yield _placed(document, fingerprint(document.id), split)


def _placed(document: Document, group: str, split: Split) -> Document:
    attributes = {**document.attributes, "group": group, "split": split}
    return dataclasses.replace(document, attributes=attributes)


def _sampled(name: str, one_in: int) -> bool:
    """Return whether a document is in a sample of 1 in `one_in`, decided by a hash of its name."""
    return int(fingerprint("sample " + name), 16) % one_in == 0


if __name__ == "__main__":
    build_embedded_corpus(Path(sys.argv[1]) if len(sys.argv) > 1 else EMBEDDED)
