"""Endless Sky: photographs of planets with descriptions, and conversations of missions."""

import re
from collections.abc import Iterator
from pathlib import Path

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Image, Text

_ROOT = "usr/share/games/endless-sky"
_HEAD = re.compile(r'^planet (?:"([^"]+)"|`([^`]+)`|(\S+))')
_FIELD = re.compile(r'^\t(landscape|description|attributes)\s+(?:`([^`]*)`|"([^"]*)"|(.+))')
_LANDSCAPES = {
    "badlands", "beach", "canyon", "city", "desert", "dune", "field", "fields", "fog", "forest",
    "hills", "lava", "mountain", "mountains", "sea", "sky", "snow", "space", "station", "sunset",
    "valley", "water",
}  # fmt: skip
"""Names of image files that describe the landscape; the others name photographers."""

_SCENE = re.compile(r'^\s*scene\s+"?([^"]+?)"?\s*$')
_WORDS = re.compile(r"^\s*`([^`]*)`")


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


def read_story_conversations(folders: PackageFolders) -> Iterator[Document]:
    """Read the conversations that show a scene."""
    root = folders["endless-sky-data"] / _ROOT
    for path in sorted((root / "data").glob("*.txt")):
        found = parse_conversations(path.read_text("utf-8", errors="replace"))
        for number, lines in enumerate(found, start=1):
            parts = tuple(_parts(lines, root / "images"))
            if any(isinstance(part, Image) for part in parts):
                yield Document(
                    id=f"{path.stem}-{number:03d}",
                    content=parts,
                    attributes={"title": f"{path.stem}, conversation {number}"},
                )


def parse_conversations(text: str) -> Iterator[list[str]]:
    """Yield the indented lines of every block that begins with `conversation`."""
    inside: list[str] | None = None
    depth = 0
    for line in [*text.splitlines(), "end"]:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if inside is not None and indent > depth:
            inside.append(line)
            continue
        if inside:
            yield inside
        starts = line.split()[0] == "conversation"
        inside, depth = ([], indent) if starts else (None, 0)


def _parts(lines: list[str], images: Path) -> Iterator[Text | Image]:
    paragraphs: list[str] = []
    for line in lines:
        if words := _WORDS.match(line):
            paragraphs.append(collapse_whitespace(words[1]))
        elif (scene := _SCENE.match(line)) and (image_file := _image_file(images, scene[1])):
            if paragraphs:
                yield Text("\n".join(paragraphs))
            paragraphs = []
            yield image_from_file(image_file)
    if paragraphs:
        yield Text("\n".join(paragraphs))


def _image_file(images: Path, name: str) -> Path | None:
    """Return the file of an image: photographs are JPEG, ships and outfits PNG."""
    found = (images / f"{name}{suffix}" for suffix in (".jpg", ".png"))
    return next((path for path in found if path.is_file()), None)
