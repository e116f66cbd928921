"""Shards of documents in memory, built in one task of this process."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from calumma.documents.document import Document
from calumma.documents.error_policy import DroppedDocument, OnError
from calumma.files import make_folder
from calumma.runtime import STOP
from calumma.shards.cache import BuildCache, TaskRecord
from calumma.shards.encode import DocumentEncoder
from calumma.shards.manifest import Manifest, encoding_fingerprint, write_manifest
from calumma.shards.shard_builder import ShardBuilder, build_task
from calumma.tokens.folder import Tokenizers


def build_shards(
    documents: Iterable[Document],
    tokenizers: Tokenizers,
    folder: Path,
    *,
    on_error: OnError = "raise",
    documents_per_shard: int = 512,
) -> Manifest:
    """Encode documents in order, keep the shards that are up to date, and write the manifest."""
    cache = BuildCache(make_folder(folder))
    old = cache.lookup(0)
    record = TaskRecord(inputs=[], shards=old.shards if old else {})
    encoding = encoding_fingerprint(tokenizers.fingerprints)
    builder = ShardBuilder(DocumentEncoder(tokenizers), folder, encoding, on_error)
    groups = _groups(documents, documents_per_shard)
    build_task(cache, 0, record, builder, groups, lambda: STOP.is_requested)
    vocabulary, fingerprints = tokenizers.text.vocabulary, tokenizers.fingerprints
    return write_manifest(folder, vocabulary, fingerprints, cache.shards(1))


def _groups(documents: Iterable[Document], size: int) -> Iterator[tuple[list[Document], list[DroppedDocument]]]:
    group: list[Document] = []
    for document in documents:
        group.append(document)
        if len(group) == size:
            yield group, []
            group = []
    if group:
        yield group, []
