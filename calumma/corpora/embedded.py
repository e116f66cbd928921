"""The corpus inside the package: images, pages and texts under permissive licenses."""

import importlib.resources
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from calumma.corpora.captions import Split
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.files import write_text

EmbeddedKind = Literal["emoji", "clip-art", "documentation", "text"]
EMBEDDED_KINDS: tuple[EmbeddedKind, ...] = ("emoji", "clip-art", "documentation", "text")


def load_embedded(kind: EmbeddedKind | None, split: Split) -> Iterator[Document]:
    """Read one kind of embedded documents, or all of them (None), always in the same order.

    An image of an emoji or of clip art comes before its caption, keeps its transparency and fits
    64 x 64 pixels. Its attributes are caption, category, subgroup, keywords, its main color and the
    fraction of it, and of emoji code and skin-tone. All documents have split and group; no group is
    in both splits.
    """
    folder = importlib.resources.files("calumma.corpora") / "embedded"
    for each in EMBEDDED_KINDS if kind is None else (kind,):
        with importlib.resources.as_file(folder / f"{each}.parquet") as path:
            for document in read_documents([path]):
                if document.attributes["split"] == split:
                    yield document


def copy_attribution(out: Path) -> None:
    """Copy the attribution and the license texts of the embedded corpus into a folder."""
    folder = importlib.resources.files("calumma.corpora") / "embedded"
    write_text(out / "ATTRIBUTION.md", (folder / "ATTRIBUTION.md").read_text("utf-8"))
    for text in (folder / "licenses").iterdir():
        write_text(out / "licenses" / text.name, text.read_text("utf-8"))


def embedded_sources() -> set[str]:
    """Return the names of the corpora that are embedded in part."""
    folder = importlib.resources.files("calumma.corpora") / "embedded"
    attribution = folder / "ATTRIBUTION.md"
    lines = attribution.read_text("utf-8").splitlines() if attribution.is_file() else []
    return {line.removeprefix("## ") for line in lines if line.startswith("## ")}
