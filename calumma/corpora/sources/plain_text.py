"""Documentation in files of plain text: manual pages in roff, pages in reStructuredText."""

import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from calumma.corpora.catalog_entry import CorpusReader, PackageFolders
from calumma.documents.document import Document, Text

MIN_FILE_WORDS = 20
"""Files with fewer words are lists of contents and references to other pages, and skipped."""

_ESCAPES = {
    r"\-": "-", r"\e": "\\", r"\(aq": "'", r"\(dq": '"', r"\(ha": "^", r"\(ti": "~", r"\(bu": "*",
    r"\(em": "--", r"\(en": "-", r"\(co": "(c)", r"\(ga": "`", r"\ ": " ", r"\&": "", r"\c": "",
    r"\|": "", r"\^": "", r"\/": "", r"\%": "", r"\:": "",
}  # fmt: skip
_ESCAPE = re.compile("|".join(map(re.escape, _ESCAPES)))
_FONT = re.compile(r"\\f(?:\[[A-Z]*\]|\([A-Z]{2}|[A-Z0-9])|\\s[-+]?\d")
_ALTERNATING = {"BR", "RB", "IR", "RI", "BI", "IB"}
_IN_FONT = {"B", "I", "SH", "SS", "SM", "IP", "UR", "MT"}
_WORD = re.compile(r'"([^"]*)"|(\S+)')


def plain_text_reader(
    package: str, folder: str, pattern: str, to_text: Callable[[str], str], *, exclude: str = ""
) -> CorpusReader:
    """Return a reader of the files under a folder, plain or compressed with gzip.

    Args:
        package: name of the package.
        folder: folder in the package.
        pattern: glob of the files.
        to_text: converts a file to plain text.
        exclude: files with this in their path are skipped.
    """

    def read(folders: PackageFolders) -> Iterator[Document]:
        root = folders[package] / folder
        for path in sorted(root.glob(pattern)):
            name = str(path.relative_to(root)).removesuffix(".gz")
            if path.is_symlink() or not path.is_file() or (exclude and exclude in f"/{name}"):
                continue
            text = to_text(_content(path)).strip()
            if len(text.split()) >= MIN_FILE_WORDS:
                yield Document(id=name, content=(Text(text),), attributes={"title": name})

    return read


def _content(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")


def strip_license_comment(text: str) -> str:
    """Remove the license comments of a reStructuredText page.

    >>> strip_license_comment(".. SPDX-License-Identifier: GPL-2.0\\n\\nTitle\\n=====\\n")
    '\\nTitle\\n=====\\n'
    """
    return re.sub(r"(?m)^\.\. SPDX-License-Identifier.*\n", "", text)


def roff_to_text(text: str) -> str:
    """Convert a manual page from roff to plain text, with an empty line between paragraphs.

    >>> roff_to_text('.SH NAME\\n.BR ls (1)\\n\\\\- list \\\\fIfiles\\\\fP\\n.PP\\nOnce.')
    'NAME\\nls(1)\\n- list files\\n\\nOnce.'
    """
    lines = (_roff_line(line) for line in text.splitlines())
    joined = "\n".join(line for line in lines if line is not None)
    return re.sub(r"\n{3,}", "\n\n", joined).strip()


def _roff_line(line: str) -> str | None:
    """Convert one line to plain text; None if it has only a request."""
    if line.startswith("'") or line.startswith('.\\"') or line.strip() == ".":
        return None
    if not line.startswith("."):
        return _unescaped(line)
    request, _, rest = line[1:].strip().partition(" ")
    if request in ("PP", "P", "LP", "TP"):
        return ""
    arguments = [quoted or plain for quoted, plain in _WORD.findall(rest)]
    if request in _ALTERNATING:
        return _unescaped("".join(arguments))
    if request in _IN_FONT:
        head = "\n" if request in ("SH", "SS") else ""
        return head + _unescaped(" ".join(arguments))
    return None


def _unescaped(text: str) -> str:
    text = _FONT.sub("", text.split('\\"')[0])
    return _ESCAPE.sub(lambda match: _ESCAPES[match[0]], text)
