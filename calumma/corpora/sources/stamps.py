"""Captioned images of educational software: Tux Paint's stamps, word lists for children."""

from __future__ import annotations

from collections.abc import Iterator

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import CorpusReader, PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Text
from calumma.errors import ImageError

_STAMPS = "usr/share/tuxpaint/stamps"


def read_tuxpaint(folders: PackageFolders) -> Iterator[Document]:
    """Read the stamps; the first line of the text file next to an image is the English caption."""
    root = folders["tuxpaint-stamps-default"] / _STAMPS
    for words in sorted(root.rglob("*.txt")):
        lines = words.read_text("utf-8", errors="replace").splitlines()
        caption = collapse_whitespace(lines[0]) if lines else ""
        images = [p for p in (words.with_suffix(".png"), words.with_suffix(".svg")) if p.exists()]
        name = words.relative_to(root)
        if not caption or not images:
            continue
        try:
            image = image_from_file(images[0])
        except ImageError:
            continue
        yield Document(
            id=str(name.with_suffix("")),
            content=(image, Text(caption)),
            attributes={
                "caption": caption,
                "category": name.parts[0],
                "subgroup": "/".join(name.parts[1:-1]),
            },
        )


def named_image_reader(package: str, folder: str, suffix: str) -> CorpusReader:
    """Return a reader of images whose file name is the caption and whose folder is the category."""

    def read(folders: PackageFolders) -> Iterator[Document]:
        root = folders[package] / folder
        for path in sorted(root.rglob(f"*{suffix}")):
            caption = collapse_whitespace(path.stem.replace("_", " "))
            category = path.parent.name.replace("_n_", " and ").replace("_", " ")
            yield Document(
                id=str(path.relative_to(root).with_suffix("")),
                content=(image_from_file(path), Text(caption)),
                attributes={"caption": caption, "category": category},
            )

    return read
