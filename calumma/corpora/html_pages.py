"""HTML pages of packages as text and images in reading order."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from calumma.corpora.image_conversion import image_size
from calumma.documents.html import MIN_IMAGE_SIDE, extract_segments, local_path
from calumma.errors import CorpusError, ImageError

_GENERATED = re.compile(r"(__coll__graph|__inherit__graph|__incl|__dep__incl|_cgraph|_icgraph|doxygen|logo)")
"""Names of logos and of images that tools generate from code."""


@dataclass(frozen=True)
class PageImage:
    """An image of a page."""

    path: Path
    caption: str
    """The alternative text; often empty."""


PageSegment = str | PageImage


def read_page(path: Path, root: Path) -> list[PageSegment]:
    """Read the text and the images of one page.

    Args:
        path: the HTML file, in UTF-8.
        root: the folder of the unpacked package; images outside are skipped.

    Returns:
        Runs of normalized text, and images of at least 48 x 48 pixels, in reading order.

    Raises:
        CorpusError: lxml is not installed.
    """
    folder, package = path.parent, root.resolve()
    try:
        return extract_segments(path.read_bytes(), lambda element: _page_image(element, folder, package))
    except ImportError as error:
        raise CorpusError(
            "this corpus is read from HTML pages, and lxml is not installed; expected it to read "
            "them. Install it: pip install 'calumma[corpora]'."
        ) from error


def _page_image(element: Any, folder: Path, root: Path) -> PageImage | None:
    source = element.get("src") or element.get("data") or ""
    # Symbolic links may lead out of the package: Debian shares images between packages.
    path = local_path(source, folder)
    if path is None or _GENERATED.search(urlsplit(source).path):
        return None
    if not (path.is_relative_to(root) and _is_large(path)):
        return None
    return PageImage(path, element.get("alt") or "")


def _is_large(path: Path) -> bool:
    try:
        return min(image_size(path)) >= MIN_IMAGE_SIDE
    except ImageError:
        return False
