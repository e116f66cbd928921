"""Building the shards of one task from groups of documents."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calumma.documents.document import Document
from calumma.documents.error_policy import UNREADABLE, DroppedDocument, OnError
from calumma.shards.cache import BuildCache, CachedShard, TaskRecord, shard_key
from calumma.shards.encode import DocumentEncoder, image_digests
from calumma.shards.format import MANIFEST_NAME, shard_name
from calumma.shards.writer import ShardWriter

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
