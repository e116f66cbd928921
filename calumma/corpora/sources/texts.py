"""Texts: WordNet, dictionaries in the format of dictd, and documentation in roff or reStructuredText."""

import gzip
import itertools
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path

from calumma.corpora.catalog_entry import CorpusReader, PackageFolders
from calumma.documents.document import Document, Text

ENTRIES_PER_DOCUMENT = 25
"""Adjacent entries per document."""

_DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"

_FOLDER = "usr/share/wordnet"
_PARTS_OF_SPEECH = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}

GLOSSES_PER_DOCUMENT = 40
"""About 600 words per document."""

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


def dictionary_reader(package: str, name: str) -> CorpusReader:
    """Return a reader of `NAME.index` and `NAME.dict.dz`, in the order of the text file."""

    def read(folders: PackageFolders) -> Iterator[Document]:
        folder = folders[package] / "usr/share/dictd"
        with gzip.open(folder / f"{name}.dict.dz") as file:
            text = file.read()
        index = (folder / f"{name}.index").read_text("utf-8", errors="replace")
        entries = iter(_entries(index, text))
        for number in itertools.count():
            page = list(itertools.islice(entries, ENTRIES_PER_DOCUMENT))
            if not page:
                break
            yield Document(
                id=f"{number:05d}",
                content=(Text("\n\n".join(page)),),
                attributes={"title": page[0].split("\n")[0][:80]},
            )

    return read


def _entries(index: str, text: bytes) -> Iterator[str]:
    """Yield the entries, each once although several headwords may refer to it."""
    ranges = set()
    for line in index.splitlines():
        word, offset, length = line.split("\t")[:3]
        if not word.startswith("00"):  # notes about the dictionary itself
            ranges.add((_number(offset), _number(length)))
    for start, size in sorted(ranges):
        entry = text[start : start + size].decode("utf-8", errors="replace").strip()
        if entry:
            yield entry


def _number(digits: str) -> int:
    """Parse a base-64 number of a dictd index, the most significant digit first.

    >>> _number("BA")
    64
    """
    value = 0
    for digit in digits:
        value = value * 64 + _DIGITS.index(digit)
    return value


def read_wordnet(folders: PackageFolders) -> Iterator[Document]:
    """Read the glosses in the order of the database: nouns, verbs, adjectives, adverbs."""
    for suffix, part_of_speech in _PARTS_OF_SPEECH.items():
        lines = _lines(folders["wordnet-base"] / _FOLDER / f"data.{suffix}", part_of_speech)
        number = 0
        while page := list(itertools.islice(lines, GLOSSES_PER_DOCUMENT)):
            yield Document(
                id=f"{part_of_speech}-{number:04d}",
                content=(Text("\n".join(page)),),
                attributes={"title": f"WordNet glosses, {part_of_speech}s", "text": part_of_speech},
            )
            number += 1


def _lines(path: Path, part_of_speech: str) -> Iterator[str]:
    for line in path.read_text("latin-1").splitlines():
        if not line.startswith("  "):  # the license at the top of the file
            yield gloss_line(line, part_of_speech)


def gloss_line(line: str, part_of_speech: str) -> str:
    """Format one line of a WordNet data file.

    >>> gloss_line("00001 03 n 02 sea_lion 0 otary 0 001 @ 000 n 0000 | an eared seal  ", "noun")
    'sea lion, otary (noun): an eared seal'
    """
    fields, gloss = line.split("|", 1)
    columns = fields.split()
    count = int(columns[3], 16)
    # Adjectives have a syntactic marker, as in "afraid(p)".
    words = [columns[4 + 2 * i].replace("_", " ").split("(")[0] for i in range(count)]
    return f"{', '.join(words)} ({part_of_speech}): {gloss.strip()}"


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
