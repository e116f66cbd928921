"""What a folder of shards says about itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calumma.errors import ShardError
from calumma.files import read_json, write_json
from calumma.shards.format import MANIFEST_NAME, VERSION
from calumma.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece: its counts and the hash of its ids."""

    name: str
    num_sequences: int
    num_ids: int
    num_codes: int
    num_images: int
    sha256: str
    skipped: dict[str, str] = field(default_factory=dict)
    """Documents left out, and why."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The table of contents of a shard folder."""

    vocabulary: Vocabulary
    fingerprint: str
    """Of everything that decides the bytes: documents, both tokenizers, pre-processing."""

    sources: list[str]
    pieces: list[Piece]

    @property
    def num_sequences(self) -> int:
        """Sequences in all pieces."""
        return sum(piece.num_sequences for piece in self.pieces)

    @property
    def codes_per_image(self) -> int:
        """Codes of each image; 0 where there is none."""
        images = sum(piece.num_images for piece in self.pieces)
        return sum(piece.num_codes for piece in self.pieces) // max(1, images)

    @property
    def num_ids(self) -> int:
        """Ids in all pieces."""
        return sum(piece.num_ids for piece in self.pieces)

    def save(self, folder: Path) -> None:
        """Write `manifest.json`."""
        write_json(
            folder / MANIFEST_NAME,
            {
                "format": "calumma shards",
                "version": VERSION,
                "vocabulary": self.vocabulary.to_json(),
                "vocabulary_fingerprint": self.vocabulary.fingerprint,
                "fingerprint": self.fingerprint,
                "sources": self.sources,
                "num_sequences": self.num_sequences,
                "num_ids": self.num_ids,
                "pieces": [asdict(piece) for piece in self.pieces],
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `manifest.json`.

        Raises:
            ShardError: there is none, or it is of another version.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise ShardError(
                f"{folder} holds no {MANIFEST_NAME}; wanted a folder of shards. Build it with "
                "`calumma build-shards DOCS --tokenizers DIR --out DIR`."
            )
        record: dict[str, Any] = read_json(path)
        if record.get("version") != VERSION:
            raise ShardError(
                f"{path} is of version {record.get('version')}; this calumma reads version "
                f"{VERSION}. Build the shards again."
            )
        return cls(
            vocabulary=Vocabulary(**record["vocabulary"]),
            fingerprint=record["fingerprint"],
            sources=record["sources"],
            pieces=[Piece(**piece) for piece in record["pieces"]],
        )


def require_vocabulary(folder: Path, found: Vocabulary, wanted: Vocabulary) -> None:
    """Refuse shards of another vocabulary.

    Raises:
        ShardError: the two tables differ.
    """
    if found != wanted:
        raise ShardError(
            f"{folder} holds ids of vocabulary {found.fingerprint} ({found.size} ids), but this "
            f"run uses vocabulary {wanted.fingerprint} ({wanted.size} ids). Build the shards again "
            "with this run's tokenizers."
        )
