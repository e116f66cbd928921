"""Entries of the corpus catalog: packages, license, reader, and expected counts."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calumma.documents.document import Document

Registry = Literal["apt", "npm", "pip"]
CorpusKind = Literal["pairs", "interleaved", "text", "questions", "evaluation", "instructions"]

PackageFolders = Mapping[str, Path]
"""The folder of each unpacked package, by the package's name."""

CorpusReader = Callable[[PackageFolders], Iterator[Document]]
"""Reads documents from unpacked packages, always in the same order."""


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
    """License of the data; a document may have a narrower one of its own."""

    notice: str = ""
    """Attribution in a sentence, if the package's own files do not contain it."""

    redistributable: bool
    """Whether the documents may be redistributed with their notices alone (public domain, MIT, BSD,
    Apache and the like); copyleft and attribution licenses are not counted."""

    num_documents: int
    """Number of documents in these versions of the packages."""

    num_images: int = 0
    """Number of image parts of those documents."""

    reader: CorpusReader = dataclasses.field(repr=False)

    def read(self, folders: PackageFolders) -> Iterator[Document]:
        """Read the documents, with this corpus as their source and its license as the default.

        Held-out instructions have a source of their own, so that no mixture includes them by
        mistake.
        """
        for document in self.reader(folders):
            held_out = document.attributes.get("split") == "held-out"
            suffix = "-held-out" if self.kind == "instructions" and held_out else ""
            yield dataclasses.replace(
                document,
                id=f"{self.name}/{document.id}",
                source=self.name + suffix,
                license=document.license or self.license,
            )
