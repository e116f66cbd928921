"""The manifest of a shard folder: its vocabulary, its fingerprints and the list of its shards."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from calumma.documents.column_account import ColumnAccount
from calumma.errors import ShardError
from calumma.files import (
    JsonLines,
    atomic_write,
    fingerprint,
    is_address,
    read_json,
    sha256,
    write_json,
    write_json_lines,
)
from calumma.shards.format import DROPPED, MANIFEST_NAME, QUARANTINE_NAME, SHARDS_NAME, VERSION
from calumma.text_format import pluralize
from calumma.vocabulary import Vocabulary

UNNAMED_SOURCE = "(no source)"


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """Totals over sequences; control tokens = `num_tokens` - text tokens - image tokens."""

    num_sequences: int = 0
    num_tokens: int = 0
    num_text_tokens: int = 0
    num_image_tokens: int = 0
    """Number of image codes."""

    num_images: int = 0
    num_loss_tokens: int = 0
    """Number of tokens with loss mask 1."""

    max_length: int = 0
    """Length of the longest sequence in tokens."""

    def __add__(self, other: "SourceCounts") -> "SourceCounts":
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return SourceCounts(**summed | {"max_length": max(self.max_length, other.max_length)})


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One set of token files: its counts and the hashes of the files."""

    name: str
    """The stem of the file names."""

    sources: dict[str, SourceCounts]
    """Counts by source, in the order of the indices in the `.sources` file."""

    sha256: dict[str, str]
    """The hash of each file, by its suffix."""

    dropped: dict[str, int] = field(default_factory=dict)
    """Number of dropped documents by reason."""

    @cached_property
    def num_sequences(self) -> int:
        """Number of sequences of all sources."""
        return sum(counts.num_sequences for counts in self.sources.values())

    @cached_property
    def num_tokens(self) -> int:
        """Number of tokens of all sources."""
        return sum(counts.num_tokens for counts in self.sources.values())

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Shard":
        """Build a shard from the output of `asdict`."""
        sources = {name: SourceCounts(**counts) for name, counts in record["sources"].items()}
        return cls(**record | {"sources": sources})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The table of contents of a shard folder."""

    vocabulary: Vocabulary
    fingerprint: str
    """Twelve hex digits of everything that decides the bytes: documents and tokenizers."""

    fingerprints: dict[str, str]
    """Fingerprints of the text tokenizer, the image tokenizer, the preprocessing and the
    filters."""

    shards: Sequence[Shard]
    """All shards in order; those of a loaded manifest are read from disk on access."""

    account: ColumnAccount = field(default_factory=ColumnAccount)
    """What became of the columns of all documents."""

    @cached_property
    def _totals(self) -> tuple[dict[str, SourceCounts], dict[str, int]]:
        """Counts by source, and numbers of dropped documents by reason."""
        sources: dict[str, SourceCounts] = {}
        dropped: Counter[str] = Counter()
        for shard in self.shards:
            for name, counts in shard.sources.items():
                sources[name] = sources.get(name, SourceCounts()) + counts
            dropped.update(shard.dropped)
        return sources, dict(sorted(dropped.items()))

    @cached_property
    def sources(self) -> list[str]:
        """Names of all sources, in the order of their first sequences."""
        return list(self._totals[0])

    def counts(self, source: str) -> SourceCounts:
        """Return the counts of one source."""
        return self._totals[0][source]

    @cached_property
    def total(self) -> SourceCounts:
        """Counts of all sources together."""
        return sum(self._totals[0].values(), start=SourceCounts())

    @property
    def dropped(self) -> dict[str, int]:
        """Number of dropped documents by reason."""
        return self._totals[1]

    @property
    def codes_per_image(self) -> int:
        """Number of codes of each image, on average if they have several sizes; 0 if there are no images."""
        return self.total.num_image_tokens // max(1, self.total.num_images)

    def save(self, folder: Path) -> None:
        """Write `shards.jsonl`, then `manifest.json`."""
        path = folder / SHARDS_NAME
        if not (isinstance(self.shards, JsonLines) and self.shards.path == path):
            write_json_lines(path, map(asdict, self.shards))
        write_json(
            folder / MANIFEST_NAME,
            {
                "format": "calumma shards",
                "version": VERSION,
                "vocabulary": self.vocabulary.to_json(),
                "vocabulary_fingerprint": self.vocabulary.fingerprint,
                "fingerprint": self.fingerprint,
                "fingerprints": self.fingerprints,
                "total": asdict(self.total),
                "sources": {name: asdict(self.counts(name)) for name in self.sources},
                "dropped": self.dropped,
                "columns": self.account.to_json(),
                "shards": {"count": len(self.shards), "sha256": sha256(path)},
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            ShardError: the folder has no manifest, is a URL or has another format version, or
                `shards.jsonl` has changed.
        """
        path = folder / MANIFEST_NAME
        if is_address(folder):
            raise ShardError(
                f"{folder}: a URL; expected a local folder, as shards are read at random offsets. "
                "Copy them to this machine first."
            )
        require_current_version(folder)
        if not path.is_file():
            raise ShardError(
                f"{folder} holds no {MANIFEST_NAME}; expected a folder of shards. Build it with "
                "`calumma build-shards DOCS --tokenizers DIR --out DIR`."
            )
        record: dict[str, Any] = read_json(path)
        shards = folder / SHARDS_NAME
        if not shards.is_file() or sha256(shards) != record["shards"]["sha256"]:
            found = "has changed since it was written" if shards.is_file() else "is missing"
            raise ShardError(
                f"{shards} {found}; expected the list of {record['shards']['count']} shards. "
                "Repeat the command that built them: intact shards are kept."
            )
        return cls(
            vocabulary=Vocabulary.from_json(record["vocabulary"]),
            fingerprint=record["fingerprint"],
            fingerprints=record["fingerprints"],
            shards=JsonLines(shards, Shard.from_json),
            account=ColumnAccount.from_json(record.get("columns", {})),
        )


def require_current_version(folder: Path) -> None:
    """Refuse a folder with shards of another format version, finished or not.

    Raises:
        ShardError: the version differs.
    """
    path = folder / MANIFEST_NAME
    version = read_json(path).get("version") if path.is_file() else VERSION
    if version == VERSION and any(folder.glob("piece-*")):
        version = 3
    if version != VERSION:
        raise ShardError(
            f"{folder} holds shards of format version {version}; expected version {VERSION}. Build them again into "
            "another folder: `calumma build-shards DOCS --tokenizers DIR --out NEW`."
        )


def encoding_fingerprint(fingerprints: Mapping[str, str]) -> str:
    """Return twelve hex digits of the tokenizers' fingerprints and of the format version."""
    return fingerprint(f"{VERSION} {sorted(fingerprints.items())}")


def write_manifest(
    folder: Path,
    vocabulary: Vocabulary,
    fingerprints: Mapping[str, str],
    shards: Iterable[Shard],
    account: ColumnAccount | None = None,
) -> Manifest:
    """Write manifest and quarantine of `shards`, in one pass, and delete all other shard files."""
    names: set[str] = set()
    digest = hashlib.sha256(encoding_fingerprint(fingerprints).encode())

    with atomic_write(folder / QUARANTINE_NAME) as temporary, temporary.open("wb") as file:

        def collected() -> Iterator[Shard]:
            for shard in shards:
                names.add(shard.name)
                digest.update(repr(sorted(shard.sha256.items())).encode())
                if shard.dropped:
                    file.write((folder / (shard.name + DROPPED)).read_bytes())
                yield shard

        write_json_lines(folder / SHARDS_NAME, map(asdict, collected()))
    for path in folder.glob("shard-*"):
        if path.stem not in names:
            path.unlink()
    manifest = Manifest(
        vocabulary=vocabulary,
        fingerprint=digest.hexdigest()[:12],
        fingerprints=dict(fingerprints),
        shards=JsonLines(folder / SHARDS_NAME, Shard.from_json),
        account=account or ColumnAccount(),
    )
    manifest.save(folder)
    return manifest


def require_vocabulary(folder: Path, found: Vocabulary, expected: Vocabulary) -> None:
    """Refuse shards of another vocabulary.

    Raises:
        ShardError: the vocabularies differ.
    """
    if found != expected:
        raise ShardError(
            f"{folder} holds token ids of vocabulary {found.fingerprint} ({found.size} ids); "
            f"expected this run's vocabulary {expected.fingerprint} ({expected.size} ids). Build "
            "the shards again with this run's tokenizers."
        )


def format_manifest(manifest: Manifest) -> list[str]:
    """Format the totals, the dropped documents, and a table of the sources."""
    total = manifest.total
    average = "" if manifest.vocabulary.image_sizes is None else " on average"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.dropped.items())
    return [
        f"{pluralize(total.num_sequences, 'sequence')}, {pluralize(total.num_tokens, 'token')} in "
        f"{pluralize(len(manifest.shards), 'shard')}; {pluralize(total.num_images, 'image')} of "
        f"{pluralize(manifest.codes_per_image, 'code')}{average}",
        f"{pluralize(sum(manifest.dropped.values()), 'document')} dropped" + (f": {reasons}" if reasons else ""),
        *manifest.account.lines(),
        *format_sources({name: manifest.counts(name) for name in manifest.sources}),
    ]


def format_sources(sources: Mapping[str, SourceCounts]) -> list[str]:
    """Format a table with a header and one line per source.

    >>> counts = SourceCounts(num_sequences=2, num_tokens=20, num_image_tokens=8)
    >>> for line in format_sources({"pairs": counts}):
    ...     print(line)
    source  sequences     tokens       text      image    control     images    longest
    pairs           2         20          0          8         12          0          0
    """
    width = max([len("source"), *(len(name or UNNAMED_SOURCE) for name in sources)])
    columns = ("sequences", "tokens", "text", "image", "control", "images", "longest")
    lines = [f"{'source':{width}}" + "".join(f"{column:>11}" for column in columns)]
    for name, counts in sources.items():
        control = counts.num_tokens - counts.num_text_tokens - counts.num_image_tokens
        values = (
            *(counts.num_sequences, counts.num_tokens, counts.num_text_tokens),
            *(counts.num_image_tokens, control, counts.num_images, counts.max_length),
        )
        cells = "".join(f"{value:>11,}" for value in values)
        lines.append(f"{name or UNNAMED_SOURCE:{width}}{cells}")
    return lines
