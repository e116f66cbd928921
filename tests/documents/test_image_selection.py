"""Selection by score and by size, on numbers small enough to follow."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import PIL.Image
import pytest

from calumma.documents.document import Document, Image, Text
from calumma.documents.image_selection import Score, attribute_score, select_images
from calumma.errors import DocumentError


def image_document(name: str, size: tuple[int, int], score: str = "7") -> Document:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, "red").save(file, "PNG")
    parts = (Image(data=file.getvalue()), Text(name))
    return Document(id=name, content=parts, attributes={"aesthetic": score})


DOCUMENTS = [
    image_document("wide", (64, 8)),
    image_document("plain", (32, 32), "5.9"),
    image_document("square", (30, 30), "6"),
    image_document("large", (64, 64)),
    Document(id="words", content=(Text("no image"),)),
    Document(id="broken", content=(Image(data=b"no image"),), attributes={"aesthetic": "9"}),
]


AESTHETIC = attribute_score("aesthetic")


def select(score: Score, **limits: Any) -> tuple[list[str], dict[str, int]]:
    dropped: Counter[str] = Counter()
    selected = select_images(lambda: DOCUMENTS, score, dropped, **limits)
    return [document.id for document in selected], dict(dropped)


def test_high_scores_are_selected_then_the_sizes_closest_to_the_square() -> None:
    selected, dropped = select(AESTHETIC, min_score=6.0, target_side=32, max_documents=1)
    assert selected == ["square"]
    assert dropped == {"score": 1, "size": 2, "not one image": 1, "unreadable": 1}


def test_size_counts_as_well_as_the_ratio_and_the_order_stays() -> None:
    assert select(AESTHETIC, target_side=64, max_documents=2)[0] == ["plain", "large"]
    assert select(AESTHETIC, target_side=32)[0] == ["wide", "plain", "square", "large"]


def test_a_score_may_depend_on_the_image() -> None:
    selected, dropped = select(lambda _, image: image.width, min_score=40, target_side=64)
    assert selected == ["wide", "large"] and dropped["score"] == 2


@pytest.mark.parametrize(("name", "found"), [("beauty", None), ("mood", "'fine'")])
def test_an_attribute_that_is_no_number_raises(name: str, found: str | None) -> None:
    document = Document(id="one", content=DOCUMENTS[0].content, attributes={"mood": "fine"})
    with pytest.raises(DocumentError) as caught:
        list(select_images(lambda: [document], attribute_score(name), Counter()))
    assert str(caught.value) == (
        f"one: its attribute {name!r} is {found}; expected a number. Write the score there, or use --scorer."
    )
