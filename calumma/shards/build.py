"""Documents and tokenizers to shards, piece by piece; killed anywhere, it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import PIL.Image

from calumma.documents.document import Document, Image
from calumma.errors import DocumentError, ImageError
from calumma.files import make_folder, read_json, write_json
from calumma.runtime import STOP
from calumma.shards.format import VERSION, piece_name
from calumma.shards.manifest import Manifest, Piece
from calumma.shards.writer import PieceWriter
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.sequence import encode_document
from calumma.tokens.text import TextTokenizer

Fit = Literal["crop", "pad"]
FITS: tuple[Fit, ...] = ("crop", "pad")
Picture = tuple[PIL.Image.Image, Fit]

PIECE_DOCUMENTS = 512
"""Documents in a piece: the most work that a kill can lose."""


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
    sources: list[str] = []
    pieces: list[Piece] = []
    digest = hashlib.sha256(tokenizers.fingerprint.encode())
    for number, group in enumerate(_groups(documents)):
        for document in group:
            if document.source not in sources:
                sources.append(document.source)
        key = _key(group, tokenizers.fingerprint, skip_bad)
        digest.update(key.encode())
        piece = _known(folder, piece_name(number), key)
        if piece is None:
            STOP.check(f"{folder} holds {len(pieces)} finished pieces")
            piece = _write(group, tokenizers, folder, number, sources, skip_bad)
            write_json(folder / f"{piece.name}.json", {"key": key, "piece": asdict(piece)})
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


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    for document in documents:
        group.append(document)
        if len(group) == PIECE_DOCUMENTS:
            yield group
            group = []
    if group:
        yield group


def _key(group: Sequence[Document], fingerprint: str, skip_bad: bool) -> str:
    """A hash of all that decides a piece's bytes."""
    digest = hashlib.sha256(f"{fingerprint} {skip_bad}".encode())
    for document in group:
        roles = [turn.role for turn in document.messages]
        digest.update(f"\0{document.id}\0{document.source}\0{roles}".encode())
        for part in document.parts():
            try:
                content = part.read_bytes() if isinstance(part, Image) else part.text.encode()
            except ImageError:
                if not skip_bad:
                    raise
                content = b"unreadable"
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _known(folder: Path, name: str, key: str) -> Piece | None:
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    record = read_json(path)
    return Piece(**record["piece"]) if record["key"] == key else None


def _write(
    group: Sequence[Document],
    tokenizers: Tokenizers,
    folder: Path,
    number: int,
    sources: Sequence[str],
    skip_bad: bool,
) -> Piece:
    writer = PieceWriter(tokenizers.text.vocabulary)
    skipped: dict[str, str] = {}
    opened: list[tuple[Document, list[Picture]]] = []
    for document in group:
        try:
            opened.append((document, open_pictures(document)))
        except ImageError as error:
            if not skip_bad:
                raise
            skipped[document.id] = str(error)
    codes = iter(_encode([picture for _, pictures in opened for picture in pictures], tokenizers))
    for document, pictures in opened:
        inside = [next(codes) for _ in pictures]
        try:
            sequence = encode_document(document, tokenizers.text, inside)
        except DocumentError as error:
            if not skip_bad:
                raise
            skipped[document.id] = str(error)
            continue
        writer.add(sequence.ids, sequence.counted, sources.index(document.source))
    return writer.write(folder, piece_name(number), skipped)


def open_pictures(document: Document) -> list[Picture]:
    """A document's pictures, decoded, each with how it is fitted to a square.

    The paper crops pictures, but pads those of prompts, so that nothing asked about is lost.
    """
    pictures: list[Picture] = []
    for part in document.content:
        if isinstance(part, Image):
            pictures.append((part.open(), "crop"))
    for turn in document.messages:
        fit: Fit = "crop" if turn.role == "assistant" else "pad"
        pictures += [(part.open(), fit) for part in turn.parts if isinstance(part, Image)]
    return pictures


def _encode(pictures: Sequence[Picture], tokenizers: Tokenizers) -> list[list[int]]:
    """The codes of pictures in order, encoded in two batches, one a fit."""
    codes: list[list[int]] = [[] for _ in pictures]
    for fit in FITS:
        places = [place for place, (_, wanted) in enumerate(pictures) if wanted == fit]
        encoded = tokenizers.image.encode_images([pictures[p][0] for p in places], mode=fit)
        for place, result in zip(places, encoded, strict=True):
            codes[place] = result
    return codes
