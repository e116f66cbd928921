"""Build the shards of one task from groups of documents, and write their files."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from calumma.documents.document import Document
from calumma.documents.error_policy import UNREADABLE, DroppedDocument, OnError
from calumma.files import atomic_write
from calumma.shards import format as layout
from calumma.shards.cache import BuildCache, CachedShard, TaskRecord, shard_key
from calumma.shards.encode import DocumentEncoder, image_digests
from calumma.shards.format import MANIFEST_NAME, shard_name
from calumma.shards.manifest import Shard, SourceCounts
from calumma.vocabulary import Vocabulary

DocumentGroup = tuple[list[Document], list[DroppedDocument]]
"""The documents of one shard, and those dropped before encoding."""


def build_task(
    cache: BuildCache,
    task: int,
    record: TaskRecord,
    builder: "ShardBuilder",
    groups: Iterable[DocumentGroup],
    stop_requested: Callable[[], bool],
) -> int:
    """Build one shard of each group of documents, and store each in the cache when it is written.

    `record` holds the shards of an earlier build, which are kept if they are up to date. Returns
    the number of documents read; 0 if the build is stopping.
    """
    cache.store(task, record)
    built: dict[str, CachedShard] = {}
    num_documents = 0
    for part, (documents, dropped) in enumerate(groups):
        if stop_requested():
            return 0
        name = shard_name(task, part)
        built[name] = builder.build(name, documents, dropped, record.shards.get(name))
        record.shards[name] = built[name]
        cache.store(task, record)
        num_documents += len(documents) + len(dropped)
        has_files = any(image.path is not None for each in documents for image in each.images)
        record.is_self_contained = record.is_self_contained and not has_files
    record.shards, record.num_documents = built, num_documents
    cache.store(task, record)
    return num_documents


@dataclass
class ShardBuilder:
    """Builds single shards of a folder."""

    encoder: DocumentEncoder
    folder: Path
    encoding: str
    """Fingerprint of everything that decides a document's token ids besides the document."""

    on_error: OnError = "raise"

    def build(
        self,
        name: str,
        documents: Sequence[Document],
        dropped: Sequence[DroppedDocument] = (),
        cached: CachedShard | None = None,
    ) -> CachedShard:
        """Encode documents into a shard, or return `cached` if it has the same key.

        Args:
            name: stem of the files.
            documents: the shard's documents, in order.
            dropped: documents that were dropped before encoding.
            cached: an intact shard of this name.

        Raises:
            DocumentError, ImageError: a document cannot be encoded, under "raise".
        """
        settings = [self.encoding, self.on_error]
        if cached is not None:
            digests = map(image_digests, documents)
            if shard_key(settings, documents, digests, dropped) == cached.key:
                return cached
        writer = ShardWriter(self.encoder.tokenizers.text.vocabulary, dropped=list(dropped))
        all_digests = []
        encoded = self.encoder.encode_each(documents)
        for document, (sequence, digests_of_document) in zip(documents, encoded, strict=True):
            all_digests.append(digests_of_document)
            if not isinstance(sequence, Exception):
                writer.add(sequence.token_ids, sequence.loss_mask, document.source)
            elif self.on_error == "raise":
                raise sequence
            else:
                dropped_as = {"reason": UNREADABLE, "detail": str(sequence)}
                writer.dropped.append(DroppedDocument(id=document.id, source=document.source, **dropped_as))
        # The manifest describes the old contents, which are overwritten now.
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        key = shard_key(settings, documents, all_digests, dropped)
        return CachedShard(key, writer.write(self.folder, name))


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
