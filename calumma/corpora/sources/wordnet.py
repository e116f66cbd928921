"""WordNet: every synset as a line of words, part of speech and gloss, many lines per document."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from calumma.corpora.catalog_entry import PackageFolders
from calumma.documents.document import Document, Text

_FOLDER = "usr/share/wordnet"
_PARTS_OF_SPEECH = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}

GLOSSES_PER_DOCUMENT = 40
"""About 600 words per document."""


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
