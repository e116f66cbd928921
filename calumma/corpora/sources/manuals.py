"""Documentation: the HTML pages of a package, with their images or as text."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from calumma.corpora.catalog_entry import CorpusReader, PackageFolders
from calumma.corpora.image_conversion import image_from_file, image_size
from calumma.documents.document import Document, Image, Text
from calumma.documents.html import MIN_IMAGE_SIDE, extract_segments, local_path
from calumma.errors import CorpusError, ImageError

_GENERATED = re.compile(r"(__coll__graph|__inherit__graph|__incl|__dep__incl|_cgraph|_icgraph|doxygen|logo)")
"""Names of logos and of images that tools generate from code."""


MIN_PAGE_WORDS = 20
"""Pages with fewer words are galleries or redirects, and skipped."""

MAX_PAGE_BYTES = 3_000_000
"""Larger pages are generated indexes, and skipped."""

_TRANSLATED = re.compile(r"\.(ca|cs|de|es|fr|hu|it|ja|ko|nl|pt|ru|uk|zh)\.html$")
_INDEXES = (
    "big-page", "genindex", "search.", "py-modindex", "-members", "_8h", "dir_", "functions_",
    "globals_",
)  # fmt: skip


@dataclass(frozen=True)
class PageImage:
    """An image of a page."""

    path: Path
    caption: str
    """The alternative text; often empty."""


PageSegment = str | PageImage


@dataclass(frozen=True)
class _Page:
    """A page, as texts and images in reading order."""

    name: str
    segments: list[PageSegment]

    @property
    def images(self) -> list[PageImage]:
        """The images, in reading order."""
        return [segment for segment in self.segments if isinstance(segment, PageImage)]

    @property
    def num_words(self) -> int:
        """Number of words of all texts."""
        return sum(len(segment.split()) for segment in self.segments if isinstance(segment, str))


def illustrated_page_reader(package: str, folder: str, pattern: str = "**/*.html") -> CorpusReader:
    """Return a reader of the pages with images under a folder of a package."""

    def read(folders: PackageFolders) -> Iterator[Document]:
        root = folders[package]
        pages = [page for page in _pages(root, root / folder, pattern) if page.images]
        decorations = _decorations(pages)
        for page in pages:
            content = [
                segment
                for segment in page.segments
                if not (isinstance(segment, PageImage) and segment.path in decorations)
            ]
            document = _document(_Page(page.name, content))
            if document.images:
                yield document

    return read


def _pages(root: Path, folder: Path, pattern: str) -> Iterator[_Page]:
    for path in sorted(folder.glob(pattern)):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_PAGE_BYTES:
            continue
        if _TRANSLATED.search(path.name) or any(index in path.name for index in _INDEXES):
            continue
        page = _Page(str(path.relative_to(folder).with_suffix("")), read_page(path, root))
        if page.num_words >= MIN_PAGE_WORDS:
            yield page


def _decorations(pages: list[_Page]) -> set[Path]:
    """Return the images of more than 8 pages and more than 5 % of them: arrows, marks, logos."""
    counts = Counter(path for page in pages for path in {image.path for image in page.images})
    limit = max(8.0, 0.05 * len(pages))
    return {path for path, count in counts.items() if count > limit}


def _document(page: _Page) -> Document:
    parts: list[Text | Image] = []
    for segment in page.segments:
        if isinstance(segment, str):
            parts.append(Text(segment))
            continue
        try:
            parts.append(image_from_file(segment.path))
        except ImageError:
            continue
    first = next((part.text for part in parts if isinstance(part, Text)), "")
    return Document(id=page.name, content=tuple(parts), attributes={"title": first.split("\n")[0][:120]})


def page_text_reader(package: str, folder: str, pattern: str = "**/*.html") -> CorpusReader:
    """Return a reader of the text of all pages under a folder of a package, without images."""

    def read(folders: PackageFolders) -> Iterator[Document]:
        root = folders[package]
        for page in _pages(root, root / folder, pattern):
            words = [segment for segment in page.segments if isinstance(segment, str)]
            yield _document(_Page(page.name, ["\n".join(words)]))

    return read


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
