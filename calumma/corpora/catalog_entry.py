"""What a corpus is: packages to fetch, a reader of what they hold, and the counts to expect."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calumma.documents.document import Document

Registry = Literal["apt", "npm", "pip"]
CorpusKind = Literal["pairs", "interleaved", "text", "questions", "evaluation", "instructions"]

PackageFolders = Mapping[str, Path]
"""Where each package lies unpacked, by the package's name."""

CorpusReader = Callable[[PackageFolders], Iterator[Document]]
"""Turns unpacked packages into documents, always in the same order."""


@dataclass(frozen=True)
class Package:
    """One version of one package in one registry."""

    registry: Registry
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.registry})"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One corpus of the catalog."""

    name: str
    kind: CorpusKind
    packages: tuple[Package, ...]

    license: str
    """Licence of the data; a document may name a narrower one of its own."""

    notice: str = ""
    """Whose work it is, in a sentence, where the packages' own files do not say it."""

    redistributable: bool
    """Whether the documents may be passed on with their notices and nothing else to be minded
    (public domain, MIT, BSD, Apache and the like); copyleft and attribution licences are not."""

    num_documents: int
    """Documents that the reader finds in these versions of the packages."""

    num_images: int = 0
    """Pictures in those documents; one that stands in two documents counts twice."""

    reader: CorpusReader = dataclasses.field(repr=False)

    def read(self, folders: PackageFolders) -> Iterator[Document]:
        """Read the documents, each named after this corpus and with its licence.

        What is held out of instructions is a source of its own, which no mixture names by mistake.
        """
        for document in self.reader(folders):
            held_out = document.attributes.get("split") == "held-out"
            apart = "-held-out" if self.kind == "instructions" and held_out else ""
            yield dataclasses.replace(
                document,
                id=f"{self.name}/{document.id}",
                source=self.name + apart,
                license=document.license or self.license,
            )
