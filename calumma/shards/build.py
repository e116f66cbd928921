"""Documents and tokenizers to shards, piece by piece; killed anywhere, it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from calumma.documents.document import Document, Image
from calumma.errors import DocumentError, ImageError
from calumma.files import make_folder, read_json, sha256, write_json
from calumma.runtime import STOP
from calumma.shards.encode import DocumentEncoder
from calumma.shards.format import IDS, MANIFEST_NAME, VERSION, ids_dtype, piece_name, piece_sizes
from calumma.shards.manifest import Manifest, Piece
from calumma.shards.writer import PieceWriter
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer

PIECE_DOCUMENTS = 512
"""Documents in a piece: the most work that a kill can lose."""

BATCH_DOCUMENTS = 32
"""Documents whose pictures are decoded and encoded together: photographs of 12 million pixels
take 36 MB each."""


@dataclass(frozen=True, kw_only=True)
class Tokenizers:
    """Both tokenizers, which must agree on the number of codes."""

    text: TextTokenizer
    image: ImageTokenizer

    def __post_init__(self) -> None:
        wanted, found = self.text.vocabulary.num_codes, self.image.config.num_codes
        if wanted != found:
            raise DocumentError(
                f"the image tokenizer has {found} codes, the text tokenizer's vocabulary "
                f"{wanted}; wanted the same number. Train the text tokenizer with "
                f"--num-codes {found}."
            )

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all that decides the ids of a document."""
        text = hashlib.sha256(self.text.tokenizer.to_str(pretty=False).encode()).hexdigest()
        both = f"{VERSION} {text} {self.image.fingerprint}"
        return hashlib.sha256(both.encode()).hexdigest()[:12]


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
        skip_bad: leave unreadable documents out and list them in the manifest, instead of
            raising at the first.
        progress: called with the number of documents that each piece adds.

    Raises:
        DocumentError, ImageError: a document cannot be read and `skip_bad` is off.
    """
    make_folder(folder)
    encoder = DocumentEncoder(tokenizers.text, tokenizers.image)
    sources: list[str] = []
    pieces: list[Piece] = []
    digest = hashlib.sha256(tokenizers.fingerprint.encode())
    for number, group in enumerate(_cut(documents, PIECE_DOCUMENTS)):
        sources += dict.fromkeys(d.source for d in group if d.source not in sources)
        key = _key(group, tokenizers.fingerprint, sources, skip_bad)
        digest.update(key.encode())
        name = piece_name(number)
        piece = _known(folder, name, key, ids_dtype(tokenizers.text.vocabulary.size))
        if piece is None:
            STOP.check(f"{folder} holds {len(pieces)} finished pieces")
            # From here on the old contents are gone: nothing may still vouch for them.
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
            (folder / f"{name}.json").unlink(missing_ok=True)
            piece = _encode_group(group, encoder, sources, skip_bad).write(folder, name)
            write_json(folder / f"{name}.json", {"key": key, "piece": asdict(piece)})
        pieces.append(piece)
        progress(len(group))
    manifest = Manifest(
        vocabulary=tokenizers.text.vocabulary,
        fingerprint=digest.hexdigest()[:12],
        sources=sources,
        pieces=pieces,
    )
    manifest.save(folder)
    return manifest


def _cut(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    waiting = iter(documents)
    while group := list(islice(waiting, size)):
        yield group


def _key(
    group: Sequence[Document], fingerprint: str, sources: Sequence[str], skip_bad: bool
) -> str:
    """A hash of all that decides a piece's bytes."""
    digest = hashlib.sha256(f"{fingerprint} {skip_bad}".encode())
    for document in group:
        turns = [(turn.role, len(turn.parts)) for turn in document.messages]
        place = sources.index(document.source)
        head = [document.id, place, turns, [type(part).__name__ for part in document.parts()]]
        digest.update(f"\0{head!r}".encode())
        for part in document.parts():
            try:
                content = part.read_bytes() if isinstance(part, Image) else part.text.encode()
            except ImageError:
                if not skip_bad:
                    raise
                content = b"unreadable"
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _known(folder: Path, name: str, key: str, dtype: str) -> Piece | None:
    """The piece that is there already, if it is made of the same and its files are whole."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    record = read_json(path)
    if record["key"] != key:
        return None
    piece = Piece(**record["piece"])
    whole = all(
        (folder / (name + suffix)).is_file()
        and (folder / (name + suffix)).stat().st_size == num_bytes
        for suffix, num_bytes in piece_sizes(piece.num_sequences, piece.num_ids, dtype).items()
    )
    return piece if whole and sha256(folder / (name + IDS)) == piece.sha256 else None


def _encode_group(
    group: Sequence[Document], encoder: DocumentEncoder, sources: Sequence[str], skip_bad: bool
) -> PieceWriter:
    """One piece's sequences; only a batch of documents has its pictures in memory at a time."""
    writer = PieceWriter(encoder.text.vocabulary)
    for batch in _cut(group, BATCH_DOCUMENTS):
        try:
            encoded = list(zip(batch, encoder.encode(batch), strict=True))
        except (ImageError, DocumentError):
            if not skip_bad:
                raise
            encoded = []
            for document in batch:
                try:
                    encoded.append((document, encoder.encode([document])[0]))
                except (ImageError, DocumentError) as error:
                    writer.skipped[document.id] = str(error)
        for document, sequence in encoded:
            writer.add(sequence.ids, sequence.counted, sources.index(document.source))
    return writer
