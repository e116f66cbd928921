"""Captions become pictures where they stand."""

from __future__ import annotations

from calumma.compare.caption_to_image import captions_to_images
from calumma.documents.document import Document, Image, Text, Turn


def _draw(caption: str) -> Image | None:
    return None if caption == "too hard" else Image(data=caption.encode())


def test_a_caption_is_replaced_by_what_is_drawn_of_it() -> None:
    told = "Look:\n<caption> a red cat </caption>\nand\n<CAPTION>a dog</CAPTION>"
    answer = Document(id="1", messages=(Turn("assistant", (Text(told),)),))
    assert captions_to_images(answer, _draw).content == (
        Text("Look:"),
        Image(data=b"a red cat"),
        Text("and"),
        Image(data=b"a dog"),
    )


def test_what_cannot_be_drawn_and_what_is_no_caption_stays() -> None:
    picture = Image(data=b"x")
    parts = (Text("a <caption>too hard</caption> b"), picture, Text("\nplain\n"))
    assert captions_to_images(Document(id="1", content=parts), _draw).content == parts
