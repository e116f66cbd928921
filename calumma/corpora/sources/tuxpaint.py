"""Tux Paint's stamps: drawings and photographs of objects with English captions."""

from collections.abc import Iterator

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
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
            attributes={"caption": caption, "category": name.parts[0], "subgroup": "/".join(name.parts[1:-1])},
        )
