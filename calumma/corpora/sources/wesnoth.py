"""Wesnoth's units: portraits and sprites, each with a paragraph about who is seen."""

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
_PICTURES = {"profile": "portrait", "image": "sprite"}


def read_wesnoth(folders: PackageFolders) -> Iterator[Document]:
    """Read the units that have a name, a description and a picture; a picture stands once under
    one name."""
    root = folders["wesnoth-1.16-data"] / _ROOT
    seen = set[tuple[Path, str]]()
    for path in sorted(root.rglob("units/**/*.cfg")):
        for fields in units(path.read_text("utf-8", errors="replace")):
            name = fields.get("name", "").rpartition("^")[2]
            for field, kind in _PICTURES.items():
                picture = _picture(fields.get(field, ""), path, root)
                if not (name and fields.get("description") and picture):
                    continue
                if (picture, name) not in seen:
                    seen.add((picture, name))
                    id = f"{kind}-{len(seen):04d}-{name.lower().replace(' ', '-')}"
                    yield _document(id, kind, {**fields, "name": name}, picture)


def units(text: str) -> Iterator[dict[str, str]]:
    """The fields of every unit in a file; those of its attacks and variations are left out."""
    for unit in _UNIT.finditer(text):
        fields: dict[str, str] = {}
        for key, quoted, plain in _FIELD.findall(_INNER.sub("", unit[1])):
            fields.setdefault(key, collapse_whitespace(quoted.replace('""', '"') or plain))
        yield fields


def _picture(named: str, path: Path, root: Path) -> Path | None:
    """The file that a field names; what follows "~" is done to the picture by the game."""
    name = named.partition("~")[0]
    places = [root / "core", path.parents[1], path.parents[2]]
    found = [place / "images" / name for place in places if name]
    return next((picture for picture in found if picture.is_file()), None)


def _document(id: str, kind: str, fields: dict[str, str], picture: Path) -> Document:
    words = [fields.get("alignment", "neutral"), fields.get("race", "")]
    caption = f"{fields['name']}, a {' '.join(filter(None, words))} unit"
    return Document(
        id=id,
        content=(image_from_file(picture), Text(f"{caption}\n{fields['description']}")),
        attributes={
            "caption": caption,
            "category": kind,
            "keywords": ", ".join(filter(None, [*words, fields.get("movement_type", "")])),
        },
    )
