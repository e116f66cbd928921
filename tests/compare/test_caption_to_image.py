"""Captions become images in their positions."""

from __future__ import annotations

from calumma.compare.caption_to_image import captions_to_images
from calumma.documents.document import Document, Image, Text, Turn


def _generate(caption: str) -> Image | None:
    return None if caption == "too hard" else Image(data=caption.encode())


def test_a_caption_is_replaced_by_an_image() -> None:
    text = "Look:\n<caption> a red cat </caption>\nand\n<CAPTION>a dog</CAPTION>"
    answer = Document(id="1", messages=(Turn("assistant", (Text(text),)),))
    assert captions_to_images(answer, _generate).content == (
        Text("Look:"),
        Image(data=b"a red cat"),
        Text("and"),
        Image(data=b"a dog"),
    )


def test_a_caption_without_an_image_and_other_parts_stay() -> None:
    image = Image(data=b"x")
    parts = (Text("a <caption>too hard</caption> b"), image, Text("\nplain\n"))
    assert captions_to_images(Document(id="1", content=parts), _generate).content == parts
