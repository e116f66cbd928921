"""Reader of HTML pages: text and images in reading order, without the boilerplate around them.

Navigation, headers, footers, forms and scripts are left out; if a page has a main part with most of
its text, only that part is read. trafilatura is not used because it drops images and their
captions.
"""

import base64
import io
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import PIL.Image

from calumma.documents.document import Document, Image, Text
from calumma.documents.error_policy import DroppedDocument, OnError, drop_or_raise, unreadable_file_error
from calumma.documents.paths import AnyPath, RemotePath, resolve_inside
from calumma.errors import DocumentError, ImageError

MIN_IMAGE_SIDE = 48
"""Pixels; images with a shorter side are icons of the page, not content."""

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
"""Classes and ids of boilerplate elements."""

_MAIN = './/*[@role="main"] | .//main | .//div[@class="body"] | .//div[@class="contents"] | .//div[@id="DisplayArea"]'

MIN_MAIN_FRACTION = 0.3
"""A main part with a smaller fraction of the page's text is not used as the main part."""

ImageT = TypeVar("ImageT")


def read_html(
    path: AnyPath, on_error: OnError = "raise", ignored: Collection[str] = ()
) -> Iterator[Document | DroppedDocument]:
    """Read one page as a document, with its title as an attribute.

    Images are files next to the page or below its folder, or embedded in the page (data: URLs).
    Images on the web, and those smaller than 48 pixels, are skipped.

    Raises:
        DocumentError: the file cannot be read, or lxml is not installed; under "raise" also a page
            without text or images.
    """
    root = path.parent if isinstance(path, RemotePath) else path.parent.resolve()
    try:
        data = path.read_bytes()
        segments = extract_segments(data, lambda element: _find_image(element, root, f"{path}, img"))
    except OSError as error:
        raise unreadable_file_error(path, error, "an HTML page") from error
    except ImportError as error:
        raise DocumentError(
            f"{path} is an HTML page, and lxml is not installed; expected it to read the page. "
            "Install it: pip install 'calumma[corpora]'."
        ) from error
    parts = tuple(Text(s) if isinstance(s, str) else s for s in segments)
    if not parts:
        empty = DocumentError(f"{path}: an HTML page without text or images; expected some. Remove the file.")
        yield drop_or_raise(empty, on_error)
        return
    first = next((part.text for part in parts if isinstance(part, Text)), "")
    attributes = {"title": first.split("\n")[0][:120]}
    yield Document(id=path.name, content=parts, attributes=attributes)


def extract_segments(data: bytes, make_image: Callable[[Any], ImageT | None]) -> list[str | ImageT]:
    """Extract the text and the images of a page, in reading order.

    Args:
        data: the page, in UTF-8.
        make_image: converts an img, object or embed element; None skips it.

    Returns:
        Runs of normalized text, and the results of `make_image`.

    Raises:
        ImportError: lxml is not installed.
    """
    import lxml.html

    parser = lxml.html.HTMLParser(encoding="utf-8")
    tree = lxml.html.document_fromstring(data or b"<html></html>", parser=parser)
    body = tree.find("body")
    return _merge_text(_walk(_main_part(tree if body is None else body), make_image))


def _main_part(body: Any) -> Any:
    parts = body.xpath(_MAIN)
    if not parts:
        return body
    largest = max(parts, key=lambda element: len(element.text_content()))
    limit = MIN_MAIN_FRACTION * len(body.text_content())
    return largest if len(largest.text_content()) >= limit else body


def _walk(element: Any, make_image: Callable[[Any], ImageT | None]) -> Iterator[str | ImageT]:
    """Yield the segments of an element and its children, without the text after it."""
    tag = element.tag if isinstance(element.tag, str) else "script"
    labels = f"{element.get('class') or ''} {element.get('id') or ''}"
    if tag in _SKIPPED or (tag not in ("body", "html", "main") and _BOILERPLATE.search(labels)):
        return
    if tag in ("img", "object", "embed") and (image := make_image(element)) is not None:
        yield image
    separator = "\n" if tag in _BLOCKS else "\t" if tag == "td" else ""
    yield separator
    yield element.text or ""
    for child in element:
        yield from _walk(child, make_image)
        yield child.tail or ""
    yield separator


def _find_image(element: Any, root: AnyPath, name: str) -> Image | None:
    source = element.get("src") or element.get("data") or ""
    image = _embedded_image(source, name) if source.startswith("data:") else _file(source, root)
    try:
        if image is not None:
            with PIL.Image.open(io.BytesIO(image.read_bytes())) as header:
                return image if min(header.size) >= MIN_IMAGE_SIDE else None
    except (ImageError, OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return None
    return None


def _embedded_image(source: str, name: str) -> Image | None:
    head, _, body = source.partition(",")
    if not head.endswith(";base64"):
        return None
    try:
        return Image(data=base64.b64decode(unquote(body)), name=name)
    except ValueError:
        return None


def _file(source: str, root: AnyPath) -> Image | None:
    if isinstance(root, RemotePath):
        relative = _relative_path(source)
        remote = resolve_inside(root, relative) if relative else None
        return Image(path=remote) if remote is not None else None
    path = local_path(source, root)
    return Image(path=path) if path is not None and path.is_relative_to(root) else None


def local_path(source: str, folder: Path) -> Path | None:
    """Return the local file that a URL of a page refers to, or None."""
    relative = _relative_path(source)
    path = (folder / relative).resolve() if relative else None
    return path if path is not None and path.is_file() else None


def _relative_path(source: str) -> str:
    """Return the path of a URL without scheme and host; "" for other URLs."""
    try:
        url = urlsplit(source)
    except ValueError:
        return ""
    return "" if url.scheme or url.netloc else unquote(url.path)


def _merge_text(segments: Iterator[str | ImageT]) -> list[str | ImageT]:
    """Join the runs of text between images, and drop those without a word."""
    merged: list[str | ImageT] = []
    buffer: list[str] = []
    for segment in (*segments, None):
        if isinstance(segment, str):
            buffer.append(segment)
            continue
        if text := normalize_whitespace("".join(buffer)):
            merged.append(text)
        buffer.clear()
        if segment is not None:
            merged.append(segment)
    return merged


def normalize_whitespace(text: str) -> str:
    """Reduce white space to single spaces and line breaks; indents of code are kept.

    >>> normalize_whitespace("a  b \\n\\n\\n    if c:\\n")
    'a b\\n    if c:'
    """
    text = text.replace("\xa0", " ").replace("\r", "")
    lines = (line.rstrip() for line in text.replace("¶", "").split("\n"))
    non_empty = (line for line in lines if line.strip())
    return "\n".join(
        line[: len(line) - len(line.lstrip())].replace("\t", " ") + " ".join(line.split()) for line in non_empty
    ).strip()
