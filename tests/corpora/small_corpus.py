"""A corpus whose package is in the cache."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from calumma.corpora.catalog_entry import Corpus, Package, PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Text
from tests.corpora.packages import text, write_image

PACKAGE = Package("npm", "small", "1.0")


def _read(folders: PackageFolders) -> Iterator[Document]:
    for path in sorted(folders["small"].glob("*.png")):
        yield Document(id=path.stem, content=(image_from_file(path), Text(f"picture {path.stem}")))


SMALL = Corpus(
    name="small",
    kind="pairs",
    packages=(PACKAGE,),
    license="MIT",
    notice="Copyright (c) A. Painter.",
    redistributable=True,
    num_documents=3,
    num_images=3,
    reader=_read,
)
"""Three images, the last of which is too large."""


def in_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """Put the package into a cache of its own and the corpus into the catalog."""
    monkeypatch.setenv("CALUMMA_CACHE", str(cache))
    folder = cache / "packages/npm/small-1.0"
    for name, size in (("a", 10), ("b", 20), ("c", 600)):
        write_image(folder / f"{name}.png", (size, size))
    text(folder / "LICENSE", "Do as you like.")
    monkeypatch.setattr("calumma.corpora.catalog.CORPORA", (SMALL,))
    return dataclasses.replace(SMALL)
