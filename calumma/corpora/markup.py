"""HTML pages as text and pictures in reading order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from calumma.corpora.pictures import size_of_file
from calumma.errors import CorpusError, ImageError

SMALLEST_SIDE = 48
"""Pictures with a side under this are icons of the page, not of its subject."""

_SKIPPED = {"script", "style", "nav", "header", "footer", "noscript", "head", "form"}
_BLOCKS = {
    "p", "div", "li", "ul", "ol", "dl", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6", "tr",
    "table", "section", "figure", "pre", "title", "br", "blockquote",
}  # fmt: skip
_FURNITURE = re.compile(
    r"navheader|navfooter|sidebar|related|footer|\btoc\b|breadcrumb|searchbox|headerlink|navbar"
    r"|navrow|tocframe|sphx-glr-(?:thumb|download|signature|footer)|viewcode|prev-next|skip-link",
    re.IGNORECASE,
)
"""Classes and ids of what stands around a page's text."""

_GENERATED = re.compile(
    r"(__coll__graph|__inherit__graph|__incl|__dep__incl|_cgraph|_icgraph|doxygen|logo)"
)
"""Names of pictures that tools draw of code, and of logos."""

_MAIN = (
    './/*[@role="main"] | .//main | .//div[@class="body"] | .//div[@class="contents"]'
    ' | .//div[@id="DisplayArea"]'
)

MAIN_SHARE = 0.3
"""A main part with less of the page's text than this is not the main part."""


@dataclass(frozen=True)
class Figure:
    """A picture on a page."""

    path: Path
    caption: str
    """What the page says in the picture's stead; often empty."""


Piece = str | Figure


def read_page(path: Path, root: Path) -> list[Piece]:
    """Read the text and the pictures of one page.

    Args:
        path: the HTML file, in UTF-8.
        root: the folder of the unpacked package; pictures outside are left out.

    Returns:
        Runs of text, tidied, and pictures of at least 48 x 48 pixels, in reading order.

    Raises:
        CorpusError: lxml is not installed.
    """
    try:
        import lxml.html
    except ImportError as error:
        raise CorpusError(
            "this corpus is read from HTML pages, and lxml is not installed; wanted it to read "
            "them. Install it: pip install 'calumma[corpora]'."
        ) from error
    parser = lxml.html.HTMLParser(encoding="utf-8")
    tree = lxml.html.document_fromstring(path.read_bytes() or b"<html></html>", parser=parser)
    body = tree.find("body")
    return _merged(_pieces(_main_part(tree if body is None else body), path, root.resolve()))


def _main_part(body: Any) -> Any:
    parts = body.xpath(_MAIN)
    if not parts:
        return body
    largest = max(parts, key=lambda element: len(element.text_content()))
    whole = len(body.text_content())
    return largest if len(largest.text_content()) >= MAIN_SHARE * whole else body


def _pieces(element: Any, page: Path, root: Path) -> Iterator[Piece]:
    """The pieces of an element and those inside, without what follows it."""
    tag = element.tag if isinstance(element.tag, str) else "script"
    named = f"{element.get('class') or ''} {element.get('id') or ''}"
    if tag in _SKIPPED or (tag not in ("body", "html", "main") and _FURNITURE.search(named)):
        return
    if tag in ("img", "object", "embed"):
        yield from _figure(element, page, root)
    between = "\n" if tag in _BLOCKS else "\t" if tag == "td" else ""
    yield between
    yield element.text or ""
    for child in element:
        yield from _pieces(child, page, root)
        yield child.tail or ""
    yield between


def _figure(element: Any, page: Path, root: Path) -> Iterator[Figure]:
    try:
        address = urlsplit(element.get("src") or element.get("data") or "")
    except ValueError:
        return
    if address.scheme or address.netloc or not address.path or _GENERATED.search(address.path):
        return
    # Links are followed by hand: Debian puts pictures that packages share elsewhere.
    path = (page.parent / unquote(address.path)).resolve()
    if path.is_relative_to(root) and path.is_file() and _is_large(path):
        yield Figure(path, element.get("alt") or "")


def _is_large(path: Path) -> bool:
    try:
        return min(size_of_file(path)) >= SMALLEST_SIDE
    except ImageError:
        return False


def _merged(pieces: Iterator[Piece]) -> list[Piece]:
    """Join runs of text between pictures, and leave out those without a word."""
    merged: list[Piece] = []
    buffer: list[str] = []
    for piece in (*pieces, None):
        if isinstance(piece, str):
            buffer.append(piece)
            continue
        if text := tidied("".join(buffer)):
            merged.append(text)
        buffer.clear()
        if piece is not None:
            merged.append(piece)
    return merged


def tidied(text: str) -> str:
    """One space between words, one line break between blocks; indents of code are kept.

    >>> tidied("a  b \\n\\n\\n    if c:\\n")
    'a b\\n    if c:'
    """
    text = text.replace("\xa0", " ").replace("\r", "")
    lines = (line.rstrip() for line in text.replace("¶", "").split("\n"))
    kept = (line for line in lines if line.strip())
    return "\n".join(
        line[: len(line) - len(line.lstrip())].replace("\t", " ") + " ".join(line.split())
        for line in kept
    ).strip()
