"""Wesnoth's units: portraits and sprites, each with a description."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Text

_ROOT = "usr/share/games/wesnoth/1.16/data"
_UNIT = re.compile(r"\[unit_type\](.*?)\[/unit_type\]", re.DOTALL)
_INNER = re.compile(r"\[\+?(\w+)\].*?\[/\1\]", re.DOTALL)
_FIELD = re.compile(r'^\s*(\w+)\s*=[ \t]*(?:_\s*)?(?:"((?:[^"]|"")*)"|([^"\n]*))', re.MULTILINE)
_IMAGE_FIELDS = {"profile": "portrait", "image": "sprite"}


def read_wesnoth(folders: PackageFolders) -> Iterator[Document]:
    """Read the units with a name, a description and an image, without duplicates."""
    root = folders["wesnoth-1.16-data"] / _ROOT
    seen = set[tuple[Path, str]]()
    for path in sorted(root.rglob("units/**/*.cfg")):
        for fields in parse_units(path.read_text("utf-8", errors="replace")):
            name = fields.get("name", "").rpartition("^")[2]
            for field, kind in _IMAGE_FIELDS.items():
                image_file = _image_file(fields.get(field, ""), path, root)
                if not (name and fields.get("description") and image_file):
                    continue
                if (image_file, name) not in seen:
                    seen.add((image_file, name))
                    id = f"{kind}-{len(seen):04d}-{name.lower().replace(' ', '-')}"
                    yield _document(id, kind, {**fields, "name": name}, image_file)


def parse_units(text: str) -> Iterator[dict[str, str]]:
    """Yield the fields of every unit in a file, without those of its attacks and variations."""
    for unit in _UNIT.finditer(text):
        fields: dict[str, str] = {}
        for key, quoted, plain in _FIELD.findall(_INNER.sub("", unit[1])):
            fields.setdefault(key, collapse_whitespace(quoted.replace('""', '"') or plain))
        yield fields


def _image_file(field: str, path: Path, root: Path) -> Path | None:
    """Return the file that a field names; the part after "~" is a filter of the game."""
    name = field.partition("~")[0]
    parents = [root / "core", path.parents[1], path.parents[2]]
    found = [parent / "images" / name for parent in parents if name]
    return next((image_file for image_file in found if image_file.is_file()), None)


def _document(id: str, kind: str, fields: dict[str, str], image_file: Path) -> Document:
    words = [fields.get("alignment", "neutral"), fields.get("race", "")]
    caption = f"{fields['name']}, a {' '.join(filter(None, words))} unit"
    return Document(
        id=id,
        content=(image_from_file(image_file), Text(f"{caption}\n{fields['description']}")),
        attributes={
            "caption": caption,
            "category": kind,
            "keywords": ", ".join(filter(None, [*words, fields.get("movement_type", "")])),
        },
    )
