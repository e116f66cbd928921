"""What a folder of shards says about itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from calumma.errors import ShardError
from calumma.files import JsonLines, is_address, read_json, sha256, write_json, write_json_lines
from calumma.shards.format import MANIFEST_NAME, SHARDS_NAME, VERSION
from calumma.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What sequences hold, added up; control ids are the rest of `num_ids`."""

    num_sequences: int = 0
    num_tokens: int = 0
    num_text_tokens: int = 0
    num_image_tokens: int = 0
    num_images: int = 0
    num_loss_tokens: int = 0
    max_length: int = 0
    """Ids of the longest sequence."""

    def __add__(self, other: SourceCounts) -> SourceCounts:
        """The counts of both."""
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return SourceCounts(**summed | {"longest": max(self.max_length, other.max_length)})


@dataclass(frozen=True, kw_only=True)
class Shard:
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
    def num_tokens(self) -> int:
        """Ids of all sources."""
        return sum(counts.num_tokens for counts in self.sources.values())

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Shard:
        """What `asdict` made."""
        sources = {name: SourceCounts(**counts) for name, counts in record["sources"].items()}
        return cls(**record | {"sources": sources})


class ShardList(Sequence[Shard]):
    """The pieces of `pieces.jsonl`, which stay on disk until asked for."""

    def __init__(self, lines: JsonLines) -> None:
        self.lines = lines

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, place: int) -> Shard: ...
    @overload
    def __getitem__(self, place: slice) -> list[Shard]: ...
    def __getitem__(self, place: int | slice) -> Shard | list[Shard]:
        if isinstance(place, slice):
            return list(map(Shard.from_json, self.lines[place]))
        return Shard.from_json(self.lines[place])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(self.lines.path)

    def __iter__(self) -> Iterator[Shard]:
        return map(Shard.from_json, self.lines)


def write_shard_list(folder: Path, pieces: Iterable[Shard]) -> ShardList:
    """Write a folder's list of pieces, going through them once."""
    return ShardList(write_json_lines(folder / SHARDS_NAME, map(asdict, pieces)))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The table of contents of a shard folder."""

    vocabulary: Vocabulary
    fingerprint: str
    """Of everything that decides the bytes: documents, both tokenizers, pre-processing."""

    fingerprints: dict[str, str]
    """Fingerprints of the text tokenizer, the image tokenizer and the pre-processing."""

    shards: Sequence[Shard]
    """All of them, in order; those of a manifest that was loaded stay on disk until asked for."""

    @cached_property
    def _summed(self) -> tuple[dict[str, SourceCounts], dict[str, int]]:
        """The counts of each source, and of each reason for leaving documents out."""
        sources: dict[str, SourceCounts] = {}
        dropped: Counter[str] = Counter()
        for piece in self.shards:
            for name, counts in piece.sources.items():
                sources[name] = sources.get(name, SourceCounts()) + counts
            dropped.update(piece.dropped)
        return sources, dict(sorted(dropped.items()))

    @cached_property
    def sources(self) -> list[str]:
        """The names of all sources, in the order of their first sequences."""
        return list(self._summed[0])

    def counts(self, source: str) -> SourceCounts:
        """What the sequences of one source hold."""
        return self._summed[0][source]

    @cached_property
    def total(self) -> SourceCounts:
        """What all sequences hold."""
        return sum(self._summed[0].values(), start=SourceCounts())

    @property
    def dropped(self) -> dict[str, int]:
        """Documents left out, by reason."""
        return self._summed[1]

    @property
    def num_sequences(self) -> int:
        """Sequences in all pieces."""
        return self.total.num_sequences

    @property
    def codes_per_image(self) -> int:
        """Codes of each image; 0 where there is none."""
        return self.total.num_image_tokens // max(1, self.total.num_images)

    @property
    def num_tokens(self) -> int:
        """Ids in all pieces."""
        return self.total.num_tokens

    def save(self, folder: Path) -> None:
        """Write `pieces.jsonl`, and then `manifest.json`."""
        path = folder / SHARDS_NAME
        if not (isinstance(self.shards, ShardList) and self.shards.lines.path == path):
            write_shard_list(folder, self.shards)
        write_json(
            folder / MANIFEST_NAME,
            {
                "format": "calumma shards",
                "version": VERSION,
                "vocabulary": self.vocabulary.to_json(),
                "vocabulary_fingerprint": self.vocabulary.fingerprint,
                "fingerprint": self.fingerprint,
                "made_with": self.fingerprints,
                "total": asdict(self.total),
                "sources": {name: asdict(self.counts(name)) for name in self.sources},
                "dropped": self.dropped,
                "pieces": {"count": len(self.shards), "sha256": sha256(path)},
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `manifest.json`.

        Raises:
            ShardError: there is none, it is at an address, of another version, or its list of
                pieces is not the one that was written.
        """
        path = folder / MANIFEST_NAME
        if is_address(folder):
            raise ShardError(
                f"{folder}: an address of another file system; expected a folder of this machine, as "
                "shards are read at any place of their files. Copy them here first."
            )
        if not path.is_file():
            raise ShardError(
                f"{folder} holds no {MANIFEST_NAME}; expected a folder of shards. Build it with "
                "`calumma build-shards DOCS --tokenizers DIR --out DIR`."
            )
        record: dict[str, Any] = read_json(path)
        if record.get("version") != VERSION:
            raise ShardError(
                f"{path} is of version {record.get('version')}; this calumma reads version "
                f"{VERSION}. Build the shards again."
            )
        pieces = folder / SHARDS_NAME
        if not pieces.is_file() or sha256(pieces) != record["pieces"]["sha256"]:
            what = "is not what was written" if pieces.is_file() else "is missing"
            raise ShardError(
                f"{pieces} {what}; expected the list of {record['pieces']['count']} pieces. Build "
                "the shards again: what is whole is kept."
            )
        return cls(
            vocabulary=Vocabulary(**record["vocabulary"]),
            fingerprint=record["fingerprint"],
            made_with=record["made_with"],
            pieces=ShardList(JsonLines(pieces)),
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
