"""Writing one piece of shards."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from calumma.documents.error_policy import DroppedDocument
from calumma.files import atomic_write
from calumma.shards import format as layout
from calumma.shards.manifest import Piece, SourceCounts
from calumma.vocabulary import Vocabulary


@dataclass
class PieceWriter:
    """Gathers the sequences of one piece, then writes its files."""

    vocabulary: Vocabulary
    ids: array[int] = field(default_factory=lambda: array("I"))
    counted: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=list)
    of_source: list[int] = field(default_factory=list)

    sources: dict[str, SourceCounts] = field(default_factory=dict)
    """What came of each source, in the order of their first sequences."""

    dropped: list[DroppedDocument] = field(default_factory=list)
    """Documents left out, each with its reason."""

    def add(self, ids: Sequence[int], counted: Sequence[bool], source: str) -> None:
        """Append a sequence of a source."""
        assert len(ids) == len(counted)
        self.ids.extend(ids)
        self.counted.extend(counted)
        self.ends.append(len(self.ids))
        before = self.sources.get(source, SourceCounts())
        self.sources[source] = before + self._counts(ids, counted)
        self.of_source.append(list(self.sources).index(source))

    def _counts(self, ids: Sequence[int], counted: Sequence[bool]) -> SourceCounts:
        row = np.asarray(ids)
        codes, text = self.vocabulary.codes, self.vocabulary.text
        return SourceCounts(
            num_sequences=1,
            num_ids=len(row),
            num_text=int(((row >= text.start) & (row < text.stop)).sum()),
            num_codes=int(((row >= codes.start) & (row < codes.stop)).sum()),
            num_images=int((row == self.vocabulary.begin_image).sum()),
            num_counted=sum(counted),
            longest=len(row),
        )

    def write(self, folder: Path, name: str) -> Piece:
        """Write the files; each is whole or not there."""
        contents = self._contents()
        if self.dropped:
            lines = [json.dumps(asdict(drop), ensure_ascii=False) + "\n" for drop in self.dropped]
            contents[layout.DROPPED] = "".join(lines).encode()
        else:
            (folder / (name + layout.DROPPED)).unlink(missing_ok=True)
        for suffix, content in contents.items():
            with atomic_write(folder / (name + suffix)) as temporary:
                temporary.write_bytes(content)
        reasons = [drop.reason for drop in self.dropped]
        return Piece(
            name=name,
            sources=self.sources,
            dropped={reason: reasons.count(reason) for reason in sorted(set(reasons))},
            sha256={s: hashlib.sha256(content).hexdigest() for s, content in contents.items()},
        )

    def _contents(self) -> dict[str, bytes]:
        ids = np.asarray(self.ids, dtype=layout.ids_dtype(self.vocabulary.size))
        counted = np.asarray(self.counted, dtype=layout.DTYPES[layout.COUNTED])
        starts = [0, *self.ends]
        checks = [
            layout.checksum(ids[start:end].tobytes(), counted[start:end].tobytes())
            for start, end in zip(starts, self.ends, strict=False)
        ]
        arrays = {
            layout.IDS: ids,
            layout.COUNTED: counted,
            layout.ENDS: np.asarray(self.ends, dtype=layout.DTYPES[layout.ENDS]),
            layout.SOURCES: np.asarray(self.of_source, dtype=layout.DTYPES[layout.SOURCES]),
            layout.CHECKS: np.asarray(checks, dtype=layout.DTYPES[layout.CHECKS]),
        }
        return {suffix: numbers.tobytes() for suffix, numbers in arrays.items()}
