"""Documents and tokenizers to shards in one process, piece by piece; killed, it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from calumma.documents.document import Document
from calumma.files import atomic_write, make_folder
from calumma.runtime import STOP
from calumma.shards.encode import DocumentEncoder, encoding_fingerprint
from calumma.shards.format import DROPPED, QUARANTINE_NAME, shard_name
from calumma.shards.manifest import Manifest, Shard, write_shard_list
from calumma.shards.shard_builder import ShardBuilder, batched
from calumma.tokens.folder import Tokenizers

DOCUMENTS_PER_SHARD = 512
"""Documents in a piece: the most work that a kill can lose."""


def build_shards(
    documents: Iterable[Document],
    tokenizers: Tokenizers,
    folder: Path,
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] = lambda documents: None,
) -> Manifest:
    """Encode documents in order and write their shards.

    A piece that is there already, made of the same documents with the same tokenizers, is kept.

    Args:
        documents: what to encode; read once, in order.
        tokenizers: text and image.
        folder: where the pieces and the manifest go.
        skip_bad: leave unreadable documents out and list them in the quarantine, instead of
            raising at the first.
        progress: called with the number of documents that each piece adds.

    Raises:
        DocumentError, ImageError: a document cannot be read and `skip_bad` is off.
    """
    make_folder(folder)
    encoder = DocumentEncoder(tokenizers.text, tokenizers.image)
    maker = ShardBuilder(encoder, folder, encoding_fingerprint(tokenizers), skip_bad)
    pieces: list[Shard] = []
    for number, group in enumerate(batched(documents, DOCUMENTS_PER_SHARD)):
        STOP.check(f"{folder} holds {len(pieces)} finished pieces")
        pieces.append(maker.make(shard_name(number), group))
        progress(len(group))
    return write_manifest(folder, tokenizers, pieces)


def write_manifest(
    folder: Path, tokenizers: Tokenizers, pieces: Iterable[Shard], *, cleaning: str = ""
) -> Manifest:
    """Bind finished pieces together: the quarantine, the manifest, and no piece beside them.

    Args:
        folder: of the shards.
        tokenizers: that the pieces were made with.
        pieces: all of them, in order; gone through once, and not kept in memory.
        cleaning: the fingerprint of the rules by which documents were left out.
    """
    names: set[str] = set()
    digest = hashlib.sha256(encoding_fingerprint(tokenizers).encode())

    with atomic_write(folder / QUARANTINE_NAME) as temporary, temporary.open("wb") as file:

        def bound() -> Iterator[Shard]:
            for piece in pieces:
                names.add(piece.name)
                digest.update(repr(sorted(piece.sha256.items())).encode())
                if piece.dropped:
                    file.write((folder / (piece.name + DROPPED)).read_bytes())
                yield piece

        listed = write_shard_list(folder, bound())
    for path in folder.glob("piece-*"):
        if path.stem not in names:
            path.unlink()
    manifest = Manifest(
        vocabulary=tokenizers.text.vocabulary,
        fingerprint=digest.hexdigest()[:12],
        fingerprints={**tokenizers.fingerprints, **({"cleaning": cleaning} if cleaning else {})},
        shards=listed,
    )
    manifest.save(folder)
    return manifest
