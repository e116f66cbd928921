"""Endless Sky's planets: photographs of landscapes, each with a description."""

import re
from collections.abc import Iterator
from pathlib import Path

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Text

_ROOT = "usr/share/games/endless-sky"
_HEAD = re.compile(r'^planet (?:"([^"]+)"|`([^`]+)`|(\S+))')
_FIELD = re.compile(r'^\t(landscape|description|attributes)\s+(?:`([^`]*)`|"([^"]*)"|(.+))')
_LANDSCAPES = {
    "badlands", "beach", "canyon", "city", "desert", "dune", "field", "fields", "fog", "forest",
    "hills", "lava", "mountain", "mountains", "sea", "sky", "snow", "space", "station", "sunset",
    "valley", "water",
}  # fmt: skip
"""Names of image files that describe the landscape; the others name photographers."""


def read_planets(folders: PackageFolders) -> Iterator[Document]:
    """Read the planets that have a photograph and a description."""
    root = folders["endless-sky-data"] / _ROOT
    for path in sorted((root / "data").glob("*.txt")):
        for name, fields in parse_planets(path.read_text("utf-8", errors="replace")):
            if "landscape" not in fields or "description" not in fields:
                continue
            photo = root / "images" / f"{fields['landscape'][0]}.jpg"
            if photo.exists():
                yield _document(f"{path.stem}-{name}", name, fields, photo)


def parse_planets(text: str) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield the planets of a data file: a line `planet NAME`, then indented fields."""
    name, fields = "", dict[str, list[str]]()
    for line in [*text.splitlines(), "end"]:
        if field := _FIELD.match(line):
            fields.setdefault(field[1], []).append(field[2] or field[3] or field[4] or "")
        elif line and not line[0].isspace() and not line.startswith("#"):
            if name:
                yield name, fields
            head = _HEAD.match(line)
            name, fields = (head[1] or head[2] or head[3] if head else ""), {}


def _document(id: str, name: str, fields: dict[str, list[str]], photo: Path) -> Document:
    kind = re.sub(r"[0-9].*$", "", photo.stem)
    caption = f"landscape of the planet {name}" + (f": {kind}" if kind in _LANDSCAPES else "")
    about = "\n".join(map(collapse_whitespace, fields["description"]))
    return Document(
        id=id,
        content=(image_from_file(photo), Text(f"{caption}\n{about}")),
        attributes={
            "caption": caption,
            "category": kind if kind in _LANDSCAPES else "landscape",
            "keywords": ", ".join(fields.get("attributes", [""])[0].split()),
            "photograph": photo.name,
        },
    )
