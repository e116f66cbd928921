"""HTML pages as documents: text and pictures in reading order, without what stands around them.

Navigation, headers, footers, forms and scripts are left out; where a page has a main part that
holds most of its text, only that is read.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import PIL.Image

from calumma.documents.document import Document, Image, Text
from calumma.documents.error_policy import OnError, stop, unreadable_file_error
from calumma.documents.paths import AnyPath, RemotePath, resolve_inside
from calumma.errors import DocumentError, ImageError

MIN_IMAGE_SIDE = 48
"""Pictures with a side under this are icons of the page, not of its subject."""

_SKIPPED = {"script", "style", "nav", "header", "footer", "noscript", "head", "form"}
_BLOCKS = {
    "p", "div", "li", "ul", "ol", "dl", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6", "tr",
    "table", "section", "figure", "pre", "title", "br", "blockquote",
}  # fmt: skip
_BOILERPLATE = re.compile(
    r"navheader|navfooter|sidebar|related|footer|\btoc\b|breadcrumb|searchbox|headerlink|navbar"
    r"|navrow|tocframe|sphx-glr-(?:thumb|download|signature|footer)|viewcode|prev-next|skip-link",
    re.IGNORECASE,
)
"""Classes and ids of what stands around a page's text."""

_MAIN = (
    './/*[@role="main"] | .//main | .//div[@class="body"] | .//div[@class="contents"]'
    ' | .//div[@id="DisplayArea"]'
)

MIN_MAIN_FRACTION = 0.3
"""A main part with less of the page's text than this is not the main part."""


Figure = TypeVar("Figure")


def read_html(path: AnyPath, on_error: OnError = stop) -> Iterator[Document]:
    """Read one page, a document with the page's title among its attributes.

    Pictures are files beside the page, or below its folder, or stand in the page itself (data:
    addresses). Others, those on the web, and those smaller than 48 pixels are left out.

    Raises:
        DocumentError: the file cannot be read, it holds no text, or lxml is not installed.
    """
    root = path.parent if isinstance(path, RemotePath) else path.parent.resolve()
    try:
        data = path.read_bytes()
        pieces = extract_segments(
            data, lambda element: _picture(element, root, f"{path}, a picture")
        )
    except OSError as error:
        raise unreadable_file_error(path, error, "an HTML page") from error
    except ImportError as error:
        raise DocumentError(
            f"{path} is an HTML page, and lxml is not installed; expected it to read the page. "
            "Install it: pip install 'calumma[corpora]'."
        ) from error
    parts = tuple(Text(piece) if isinstance(piece, str) else piece for piece in pieces)
    if not parts:
        on_error(
            DocumentError(
                f"{path}: an HTML page without text or pictures; expected some. Leave it out."
            )
        )
        return
    first = next((part.text for part in parts if isinstance(part, Text)), "")
    attributes = {"title": first.split("\n")[0][:120]}
    yield Document(id=path.name, content=parts, attributes=attributes)


def extract_segments(data: bytes, figure: Callable[[Any], Figure | None]) -> list[str | Figure]:
    """The text and the pictures of a page, in reading order.

    Args:
        data: the page, in UTF-8.
        figure: makes something of an img, object or embed element, or leaves it out.

    Returns:
        Runs of text, tidied, and what `figure` made.

    Raises:
        ImportError: lxml is not installed.
    """
    import lxml.html

    parser = lxml.html.HTMLParser(encoding="utf-8")
    tree = lxml.html.document_fromstring(data or b"<html></html>", parser=parser)
    body = tree.find("body")
    return _merged(_pieces(_main_part(tree if body is None else body), figure))


def _main_part(body: Any) -> Any:
    parts = body.xpath(_MAIN)
    if not parts:
        return body
    largest = max(parts, key=lambda element: len(element.text_content()))
    whole = len(body.text_content())
    return largest if len(largest.text_content()) >= MIN_MAIN_FRACTION * whole else body


def _pieces(element: Any, figure: Callable[[Any], Figure | None]) -> Iterator[str | Figure]:
    """The pieces of an element and those inside, without what follows it."""
    tag = element.tag if isinstance(element.tag, str) else "script"
    named = f"{element.get('class') or ''} {element.get('id') or ''}"
    if tag in _SKIPPED or (tag not in ("body", "html", "main") and _BOILERPLATE.search(named)):
        return
    if tag in ("img", "object", "embed") and (made := figure(element)) is not None:
        yield made
    between = "\n" if tag in _BLOCKS else "\t" if tag == "td" else ""
    yield between
    yield element.text or ""
    for child in element:
        yield from _pieces(child, figure)
        yield child.tail or ""
    yield between


def _picture(element: Any, root: AnyPath, name: str) -> Image | None:
    source = element.get("src") or element.get("data") or ""
    image = _inside_page(source, name) if source.startswith("data:") else _beside(source, root)
    try:
        if image is not None:
            with PIL.Image.open(io.BytesIO(image.read_bytes())) as picture:
                return image if min(picture.size) >= MIN_IMAGE_SIDE else None
    except (ImageError, OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return None
    return None


def _inside_page(source: str, name: str) -> Image | None:
    head, _, body = source.partition(",")
    if not head.endswith(";base64"):
        return None
    try:
        return Image(data=base64.b64decode(unquote(body)), name=name)
    except ValueError:
        return None


def _beside(source: str, root: AnyPath) -> Image | None:
    if isinstance(root, RemotePath):
        relative = _relative(source)
        there = resolve_inside(root, relative) if relative else None
        return Image(path=there) if there is not None else None
    path = local_path(source, root)
    return Image(path=path) if path is not None and path.is_relative_to(root) else None


def local_path(source: str, folder: Path) -> Path | None:
    """The file that an address on a page means, or None where it means none of this machine's."""
    relative = _relative(source)
    path = (folder / relative).resolve() if relative else None
    return path if path is not None and path.is_file() else None


def _relative(source: str) -> str:
    """The path of an address that names no scheme and no host; else empty."""
    try:
        address = urlsplit(source)
    except ValueError:
        return ""
    return "" if address.scheme or address.netloc else unquote(address.path)


def _merged(pieces: Iterator[str | Figure]) -> list[str | Figure]:
    """Join runs of text between pictures, and leave out those without a word."""
    merged: list[str | Figure] = []
    buffer: list[str] = []
    for piece in (*pieces, None):
        if isinstance(piece, str):
            buffer.append(piece)
            continue
        if text := normalize_whitespace("".join(buffer)):
            merged.append(text)
        buffer.clear()
        if piece is not None:
            merged.append(piece)
    return merged


def normalize_whitespace(text: str) -> str:
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
