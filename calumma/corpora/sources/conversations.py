"""Endless Sky's conversations: stories told in paragraphs, with photographs of their scenes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Image, Text

_ROOT = "usr/share/games/endless-sky"
_SCENE = re.compile(r'^\s*scene\s+"?([^"]+?)"?\s*$')
_WORDS = re.compile(r"^\s*`([^`]*)`")


def read_story_conversations(folders: PackageFolders) -> Iterator[Document]:
    """Read the conversations that show a scene."""
    root = folders["endless-sky-data"] / _ROOT
    for path in sorted((root / "data").glob("*.txt")):
        told = conversations(path.read_text("utf-8", errors="replace"))
        for number, lines in enumerate(told, start=1):
            parts = tuple(_parts(lines, root / "images"))
            if any(isinstance(part, Image) for part in parts):
                yield Document(
                    id=f"{path.stem}-{number:03d}",
                    content=parts,
                    attributes={"title": f"{path.stem}, conversation {number}"},
                )


def conversations(text: str) -> Iterator[list[str]]:
    """The lines inside every block that begins with `conversation`: those indented deeper."""
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
    said: list[str] = []
    for line in lines:
        if words := _WORDS.match(line):
            said.append(collapse_whitespace(words[1]))
        elif (scene := _SCENE.match(line)) and (picture := _picture(images, scene[1])):
            if said:
                yield Text("\n".join(said))
            said = []
            yield image_from_file(picture)
    if said:
        yield Text("\n".join(said))


def _picture(images: Path, name: str) -> Path | None:
    """Photographs are JPEG, pictures of things to buy PNG."""
    found = (images / f"{name}{suffix}" for suffix in (".jpg", ".png"))
    return next((path for path in found if path.is_file()), None)
