"""Writing one shard."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from calumma.documents.error_policy import DroppedDocument
from calumma.files import atomic_write
from calumma.shards import format as layout
from calumma.shards.manifest import Shard, SourceCounts
from calumma.vocabulary import Vocabulary


@dataclass
class ShardWriter:
    """Collects the sequences of one shard, then writes its files."""

    vocabulary: Vocabulary
    token_ids: "array[int]" = field(default_factory=lambda: array("I"))
    loss_mask: bytearray = field(default_factory=bytearray)
    offsets: list[int] = field(default_factory=list)
    source_indices: list[int] = field(default_factory=list)

    sources: dict[str, SourceCounts] = field(default_factory=dict)
    """Counts of each source, in the order of their first sequences."""

    dropped: list[DroppedDocument] = field(default_factory=list)
    """Dropped documents, each with its reason."""

    def add(self, token_ids: Sequence[int], loss_mask: Sequence[bool], source: str) -> None:
        """Append a sequence of a source."""
        assert len(token_ids) == len(loss_mask)
        self.token_ids.extend(token_ids)
        self.loss_mask.extend(loss_mask)
        self.offsets.append(len(self.token_ids))
        counts = self.sources.get(source, SourceCounts())
        self.sources[source] = counts + self._count(token_ids, loss_mask)
        self.source_indices.append(list(self.sources).index(source))

    def _count(self, token_ids: Sequence[int], loss_mask: Sequence[bool]) -> SourceCounts:
        ids = np.asarray(token_ids)
        codes, text = self.vocabulary.codes, self.vocabulary.text
        return SourceCounts(
            num_sequences=1,
            num_tokens=len(ids),
            num_text_tokens=int(((ids >= text.start) & (ids < text.stop)).sum()),
            num_image_tokens=int(((ids >= codes.start) & (ids < codes.stop)).sum()),
            num_images=int((ids == self.vocabulary.begin_image).sum()),
            num_loss_tokens=sum(loss_mask),
            max_length=len(ids),
        )

    def write(self, folder: Path, name: str) -> Shard:
        """Write the files, each atomically, and return the shard's record."""
        contents = self._contents()
        if self.dropped:
            lines = [json.dumps(asdict(drop), ensure_ascii=False) + "\n" for drop in self.dropped]
            contents[layout.DROPPED] = "".join(lines).encode()
        else:
            (folder / (name + layout.DROPPED)).unlink(missing_ok=True)
        for suffix, content in contents.items():
            with atomic_write(folder / (name + suffix)) as temporary:
                temporary.write_bytes(content)
        return Shard(
            name=name,
            sources=self.sources,
            dropped=dict(sorted(Counter(drop.reason for drop in self.dropped).items())),
            sha256={s: hashlib.sha256(content).hexdigest() for s, content in contents.items()},
        )

    def _contents(self) -> dict[str, bytes]:
        token_ids = np.asarray(self.token_ids, dtype=layout.token_dtype(self.vocabulary.size))
        loss_mask = np.asarray(self.loss_mask, dtype=layout.DTYPES[layout.LOSS_MASK])
        starts = [0, *self.offsets]
        checksums = [
            layout.checksum(token_ids[start:end].tobytes(), loss_mask[start:end].tobytes())
            for start, end in zip(starts, self.offsets, strict=False)
        ]
        arrays = {
            layout.TOKENS: token_ids,
            layout.LOSS_MASK: loss_mask,
            layout.OFFSETS: np.asarray(self.offsets, dtype=layout.DTYPES[layout.OFFSETS]),
            layout.SOURCES: np.asarray(self.source_indices, dtype=layout.DTYPES[layout.SOURCES]),
            layout.CRC32: np.asarray(checksums, dtype=layout.DTYPES[layout.CRC32]),
        }
        return {suffix: values.tobytes() for suffix, values in arrays.items()}
