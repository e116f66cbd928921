"""One piece of shards: made of some documents, or kept where it is made of the same already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from calumma.documents.document import Document, Image
from calumma.documents.error_policy import UNREADABLE, DroppedDocument
from calumma.errors import ImageError
from calumma.files import read_json, sha256, write_json
from calumma.shards.encode import DocumentEncoder
from calumma.shards.format import MANIFEST_NAME, NOTE, shard_file_sizes, token_dtype
from calumma.shards.manifest import Shard
from calumma.shards.writer import ShardWriter


@dataclass
class ShardBuilder:
    """Makes the pieces of one folder."""

    encoder: DocumentEncoder
    folder: Path
    fingerprint: str
    """Of all that decides the ids of a document, beside the document itself."""

    skip_bad: bool = False
    """Whether a document that cannot be read is left out and listed, instead of an error."""

    def make(
        self, name: str, group: Sequence[Document], before: Sequence[DroppedDocument] = ()
    ) -> Shard:
        """The piece of these documents; one that is there and whole is kept.

        Args:
            name: the stem of its files.
            group: its documents, in order.
            before: documents that were left out before they came here.

        Raises:
            DocumentError, ImageError: a document cannot be read and `skip_bad` is off.
        """
        key = self._key(group, before)
        known = self.known(name)
        if known is not None and known[0] == key:
            return known[1]
        # From here on the old contents are gone: nothing may still vouch for them.
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        (self.folder / (name + NOTE)).unlink(missing_ok=True)
        writer = ShardWriter(self.encoder.text.vocabulary, dropped=list(before))
        self._encode(group, writer)
        piece = writer.write(self.folder, name)
        write_json(self.folder / (name + NOTE), {"key": key, "piece": asdict(piece)})
        return piece

    def known(self, name: str) -> tuple[str, Shard] | None:
        """The key and the counts of a piece that is there, if its files are whole."""
        path = self.folder / (name + NOTE)
        if not path.is_file():
            return None
        record = read_json(path)
        piece = Shard.from_json(record["piece"])
        dtype = token_dtype(self.encoder.text.vocabulary.size)
        sizes = shard_file_sizes(piece.num_sequences, piece.num_tokens, dtype)
        files = {suffix: self.folder / (name + suffix) for suffix in piece.sha256}
        whole = all(
            file.is_file()
            and file.stat().st_size == sizes.get(suffix, file.stat().st_size)
            and sha256(file) == piece.sha256[suffix]
            for suffix, file in files.items()
        )
        return (record["key"], piece) if whole else None

    def _key(self, group: Sequence[Document], before: Sequence[DroppedDocument]) -> str:
        """A hash of all that decides a piece's bytes."""
        head = [self.fingerprint, self.skip_bad, [asdict(drop) for drop in before]]
        digest = hashlib.sha256(repr(head).encode())
        for document in group:
            turns = [(turn.role, len(turn.parts)) for turn in document.messages]
            kinds = [type(part).__name__ for part in document.parts()]
            digest.update(f"\0{[document.id, document.source, turns, kinds]!r}".encode())
            for part in document.parts():
                try:
                    content = part.read_bytes() if isinstance(part, Image) else part.text.encode()
                except ImageError:
                    if not self.skip_bad:
                        raise
                    content = b"unreadable"
                digest.update(len(content).to_bytes(8, "little") + content)
        return digest.hexdigest()

    def _encode(self, group: Sequence[Document], writer: ShardWriter) -> None:
        for document, made in zip(group, self.encoder.encode_each(group), strict=True):
            if not isinstance(made, Exception):
                writer.add(made.token_ids, made.loss_mask, document.source)
            elif self.skip_bad:
                drop = DroppedDocument(
                    id=document.id, source=document.source, reason=UNREADABLE, detail=str(made)
                )
                writer.dropped.append(drop)
            else:
                raise made


def batched(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Lists of `size` documents; the last may be shorter."""
    waiting = iter(documents)
    while group := list(islice(waiting, size)):
        yield group
