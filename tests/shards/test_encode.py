"""Documents to sequences: each as it is alone, and no picture encoded twice."""

from __future__ import annotations

from collections.abc import Sequence

import PIL.Image
import pytest

from calumma.documents.document import Document, Image, Text, Turn
from calumma.shards.build import Tokenizers
from calumma.shards.encode import DocumentEncoder, open_pictures
from calumma.tokens.pixels import Fit
from calumma.tokens.sequence import encode_document
from tests.pictures import png


def test_pictures_of_prompts_are_padded_and_all_others_cropped() -> None:
    picture = Image(data=png(0))
    turns = (Turn("user", (picture,)), Turn("assistant", (picture,)), Turn("system", (picture,)))
    fits = [fit for _, fit in open_pictures(Document(id="d", messages=turns))]
    assert fits == ["pad", "crop", "pad"]
    assert [fit for _, fit in open_pictures(Document(id="d", content=(picture,)))] == ["crop"]


def test_each_document_is_encoded_as_if_it_were_alone(
    tokenizers: Tokenizers, documents: list[Document]
) -> None:
    made = DocumentEncoder(tokenizers.text, tokenizers.image).encode(documents)
    for document, sequence in zip(documents, made, strict=True):
        pictures = open_pictures(document)
        codes = [tokenizers.image.encode_image(p, mode=fit) for p, fit in pictures]
        assert sequence == encode_document(document, tokenizers.text, codes)


def test_a_picture_is_encoded_once_for_each_fit(
    tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, Fit]] = []
    encode = tokenizers.image.encode_images

    def counting(pictures: Sequence[PIL.Image.Image], mode: Fit = "crop") -> list[list[int]]:
        asked.append((len({id(picture) for picture in pictures}), mode))
        return encode(pictures, mode)

    monkeypatch.setattr(tokenizers.image, "encode_images", counting)
    wide, square = Image(data=png(0, 32, 16)), Image(data=png(1))
    plain = Document(id="p", content=(wide, square, wide))
    turns = (Turn("user", (wide,)), Turn("assistant", (Text("a"), wide)))
    encoder = DocumentEncoder(tokenizers.text, tokenizers.image)
    first = encoder.encode([plain])[0]
    encoder.encode([Document(id="c", messages=turns)])
    assert encoder.encode([plain])[0] == first
    assert asked == [(2, "crop"), (1, "pad")]
