"""Open Clip Art: drawings in the public domain, with titles, keywords and a folder each.

Titles are in the SVG files, images in the PNG files of the same names. Many titles name the
artist's collection; for those the words of the file name are used.
"""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from calumma.corpora.captions import collapse_whitespace
from calumma.corpora.catalog_entry import PackageFolders
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Image, Text
from calumma.errors import ImageError

_SVG = "usr/share/openclipart/svg"
_PNG = "usr/share/openclipart/png"

TITLES_SHARED = 2
"""Titles shared by more drawings than this are not used."""

STARS_ONE_IN = 7
"""One in this many of the 1,375 generated star polygons is kept."""

_EMPTY_TITLE = re.compile(r"clipart by|untitled|unknown|collection|submission|icon ?set|^svg$|^drawing", re.IGNORECASE)
_ARTISTS = {
    "architetto", "francesco", "rollandin", "nicu", "buculei", "jonathan", "dietrich",
}  # fmt: skip
_STAR = re.compile(r"star_(\d+)pt(\d+)step")
_CARD = re.compile(r"(?P<style>[a-z]+)_(?P<suit>[cdhs])_(?P<rank>[0-9ajqk]+)")
_SUITS = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}
_RANKS = {"a": "ace", "j": "jack", "q": "queen", "k": "king"}
_NUMBERED = re.compile(r"\d{1,4}")
_PUBLIC_DOMAIN = re.compile(r"public ?domain", re.IGNORECASE)


@dataclass(frozen=True)
class _Drawing:
    """Metadata of an SVG file."""

    path: Path
    title: str
    keywords: tuple[str, ...]
    description: str

    holds_raster: bool
    """Whether a raster image is embedded, such as a photograph in a frame."""


def read_openclipart(folders: PackageFolders) -> Iterator[Document]:
    """Read the drawings whose file has a public domain notice."""
    root = folders["openclipart-svg"] / _SVG
    drawings = list(_drawings(root))
    shared = Counter(drawing.title.lower() for drawing in drawings)
    stars = 0
    for drawing in drawings:
        name = drawing.path.relative_to(root)
        png = folders["openclipart-png"] / _PNG / name.with_suffix(".png")
        if not png.exists():
            continue
        if star := _STAR.match(name.stem):
            stars += 1
            if stars % STARS_ONE_IN:
                continue
            caption = f"star polygon with {star[1]} points and step {star[2]}"
        else:
            caption = _card(name) or _title(drawing, shared)
        if caption and (image := _image(png)):
            yield _document(drawing, name, image, caption)


def _document(drawing: _Drawing, name: Path, image: Image, caption: str) -> Document:
    attributes = {
        "caption": caption,
        "category": name.parts[0],
        "subgroup": "/".join(name.parts[1:-1]),
        "keywords": ", ".join(drawing.keywords),
        "description": drawing.description,
        "holds-raster": "yes" if drawing.holds_raster else "",
    }
    return Document(
        id=str(name.with_suffix("")),
        content=(image, Text(caption)),
        attributes={key: value for key, value in attributes.items() if value},
    )


def _image(path: Path) -> Image | None:
    """Return the image; None if its file is corrupt or too large."""
    try:
        return image_from_file(path)
    except ImageError:
        return None


def _drawings(root: Path) -> Iterator[_Drawing]:
    for path in sorted(root.rglob("*.svg")):
        if "duplicates" in path.parts:
            continue
        try:
            tree = ET.fromstring(path.read_bytes())
        except ET.ParseError:
            continue
        by_tag: dict[str, list[ET.Element]] = {}
        for element in tree.iter():
            by_tag.setdefault(element.tag.rpartition("}")[2], []).append(element)
        if any(_is_public_domain(element) for element in by_tag.get("license", [])):
            yield _Drawing(
                path=path,
                title=_first_text(by_tag.get("title", [])),
                keywords=tuple(filter(None, (collapse_whitespace(e.text or "") for e in by_tag.get("li", [])))),
                description=_first_text(by_tag.get("description", [])),
                holds_raster="image" in by_tag,
            )


def _is_public_domain(element: ET.Element) -> bool:
    return any(_PUBLIC_DOMAIN.search(value) for value in element.attrib.values())


def _first_text(elements: list[ET.Element]) -> str:
    return next(filter(None, (collapse_whitespace(element.text or "") for element in elements)), "")


def _card(name: Path) -> str | None:
    """Return the caption of a playing card, from the name of its file; None for other drawings."""
    match = _CARD.match(name.stem)
    if "cards" not in name.parts or match is None:
        return None
    rank = _RANKS.get(match["rank"], match["rank"])
    return f"{rank} of {_SUITS[match['suit']]} playing card, {match['style']} style"


def _title(drawing: _Drawing, shared: Counter[str]) -> str:
    title = drawing.title
    if title and shared[title.lower()] <= TITLES_SHARED and not _EMPTY_TITLE.search(title):
        return title if " " in title else _words_of_name(title)
    return _words_of_name(drawing.path.stem)


def _words_of_name(stem: str) -> str:
    """Return the words in a file name, without artists, numbers and single letters.

    >>> _words_of_name("tallShip_nicu_buculei_01")
    'tall ship'
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"[_\-.]+", " ", stem)).lower()
    return " ".join(
        word for word in spaced.split() if len(word) > 1 and word not in _ARTISTS and not _NUMBERED.fullmatch(word)
    )
