"""Encoding documents: each as if alone, and every image read and encoded once."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calumma.documents.document import Document, Image, Text, Turn
from calumma.errors import DocumentError, ImageError
from calumma.shards.encode import DocumentEncoder, EncodedCodes, image_digests, images_with_resize_mode
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image_preprocessing import ResizeMode
from calumma.tokens.sequence import TokenSequence, encode_document
from tests.images import png


def test_images_of_prompts_are_padded_and_all_others_cropped() -> None:
    image = Image(data=png(0))
    turns = (Turn("user", (image,)), Turn("assistant", (image,)), Turn("system", (image,)))
    modes = [mode for _, mode in images_with_resize_mode(Document(id="d", messages=turns))]
    assert modes == ["pad", "crop", "pad"]
    assert [mode for _, mode in images_with_resize_mode(Document(id="d", content=(image,)))] == ["crop"]


def test_each_document_is_encoded_as_if_it_were_alone(tokenizers: Tokenizers, documents: list[Document]) -> None:
    made = DocumentEncoder(tokenizers).encode(documents)
    for document, sequence in zip(documents, made, strict=True):
        images = images_with_resize_mode(document)
        codes = [tokenizers.image.encode_image(p.open(), resize_mode=mode) for p, mode in images]
        assert sequence == encode_document(document, tokenizers.text, codes)


def test_an_image_is_encoded_once_per_resize_mode(tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[ResizeMode] = []
    encode = tokenizers.image.encode_stream

    def counting(images: Iterable[tuple[Image, ResizeMode]], **options: Any) -> Iterator[EncodedCodes]:
        given = list(images)
        modes.extend(mode for _, mode in given)
        return encode(given, **options)

    monkeypatch.setattr(tokenizers.image, "encode_stream", counting)
    wide, square = Image(data=png(0, 32, 16)), Image(data=png(1))
    plain = Document(id="p", content=(wide, square, wide))
    turns = (Turn("user", (wide,)), Turn("assistant", (Text("a"), wide)))
    encoder = DocumentEncoder(tokenizers)
    first = encoder.encode([plain])[0]
    encoder.encode([Document(id="c", messages=turns)])
    assert encoder.encode([plain])[0] == first
    assert modes == ["crop", "crop", "pad"]


def test_a_document_that_cannot_be_encoded_does_not_affect_others(tokenizers: Tokenizers) -> None:
    good = Document(id="good", content=(Text("a"), Image(data=png(0))))
    broken = Document(id="broken", content=(Image(data=b"no image", name="here"),))
    missing = Document(id="missing", content=(Image(path=Path("nowhere/1.png")),))
    monologue = Document(id="monologue", messages=(Turn("assistant", (Text("a"),)),))
    encoder = DocumentEncoder(tokenizers)
    made = list(encoder.encode_each([broken, good, missing, monologue, good]))
    assert [type(one.sequence) for one in made] == [
        *(ImageError, TokenSequence, ImageError, DocumentError, TokenSequence)
    ]
    assert made[1] == made[4]
    assert [made[1].sequence] == encoder.encode([good])
    assert [digest is None for one in made for digest in one.image_digests] == [False, False, True, False]
    with pytest.raises(ImageError, match="not an image"):
        encoder.encode([good, broken, missing])


def test_an_error_names_the_current_document(tokenizers: Tokenizers) -> None:
    """Check that the same broken bytes in an earlier document change nothing."""
    encoder = DocumentEncoder(tokenizers)
    for name in ("first.jsonl:1", "second.jsonl:9"):
        bad = Document(id="b", content=(Image(data=b"no", name=name),))
        [(error, _)] = encoder.encode_each([bad])
        assert isinstance(error, ImageError)
        assert str(error).startswith(f"{name}: not an image")


def test_each_image_file_is_read_once(tokenizers: Tokenizers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(png(number % 2))
    reads: list[Path] = []
    read = Path.read_bytes

    def recorded(path: Path) -> bytes:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", recorded)
    documents = [Document(id=path.name, content=(Image(path=path),)) for path in paths]
    made = list(DocumentEncoder(tokenizers).encode_each(documents))
    assert reads == paths
    assert made[0].sequence == made[2].sequence != made[1].sequence
    assert made[0].image_digests == image_digests(documents[0])
