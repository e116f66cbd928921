"""What a folder of shards says about itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from calumma.errors import ShardError
from calumma.files import read_json, write_json
from calumma.shards.format import MANIFEST_NAME, VERSION
from calumma.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What sequences hold, added up; control ids are the rest of `num_ids`."""

    num_sequences: int = 0
    num_ids: int = 0
    num_text: int = 0
    num_codes: int = 0
    num_images: int = 0
    num_counted: int = 0
    longest: int = 0
    """Ids of the longest sequence."""

    def __add__(self, other: SourceCounts) -> SourceCounts:
        """The counts of both."""
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return SourceCounts(**summed | {"longest": max(self.longest, other.longest)})


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece: its counts and the hashes of its files."""

    name: str

    sources: dict[str, SourceCounts]
    """In the order of the places that stand in the piece's .sources."""

    sha256: dict[str, str]
    """The hash of each file, by its suffix."""

    dropped: dict[str, int] = field(default_factory=dict)
    """Documents left out, by reason."""

    @property
    def total(self) -> SourceCounts:
        """The counts of all sources."""
        return sum(self.sources.values(), start=SourceCounts())

    @cached_property
    def num_sequences(self) -> int:
        """Sequences of all sources."""
        return sum(counts.num_sequences for counts in self.sources.values())

    @cached_property
    def num_ids(self) -> int:
        """Ids of all sources."""
        return sum(counts.num_ids for counts in self.sources.values())

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Piece:
        """What `asdict` made."""
        sources = {name: SourceCounts(**counts) for name, counts in record["sources"].items()}
        return cls(**record | {"sources": sources})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The table of contents of a shard folder."""

    vocabulary: Vocabulary
    fingerprint: str
    """Of everything that decides the bytes: documents, both tokenizers, pre-processing."""

    made_with: dict[str, str]
    """Fingerprints of the text tokenizer, the image tokenizer and the pre-processing."""

    pieces: list[Piece]

    @cached_property
    def sources(self) -> list[str]:
        """The names of all sources, in the order of their first sequences."""
        return list(dict.fromkeys(name for piece in self.pieces for name in piece.sources))

    def counts(self, source: str) -> SourceCounts:
        """What the sequences of one source hold."""
        of_pieces = [piece.sources[source] for piece in self.pieces if source in piece.sources]
        return sum(of_pieces, start=SourceCounts())

    @cached_property
    def total(self) -> SourceCounts:
        """What all sequences hold."""
        return sum((piece.total for piece in self.pieces), start=SourceCounts())

    @property
    def dropped(self) -> dict[str, int]:
        """Documents left out, by reason."""
        reasons = sorted({reason for piece in self.pieces for reason in piece.dropped})
        return {r: sum(piece.dropped.get(r, 0) for piece in self.pieces) for r in reasons}

    @property
    def num_sequences(self) -> int:
        """Sequences in all pieces."""
        return sum(piece.num_sequences for piece in self.pieces)

    @property
    def codes_per_image(self) -> int:
        """Codes of each image; 0 where there is none."""
        return self.total.num_codes // max(1, self.total.num_images)

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
                "made_with": self.made_with,
                "total": asdict(self.total),
                "sources": {name: asdict(self.counts(name)) for name in self.sources},
                "dropped": self.dropped,
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
            made_with=record["made_with"],
            pieces=[Piece.from_json(piece) for piece in record["pieces"]],
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
