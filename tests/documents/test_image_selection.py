"""Pictures chosen by a score and by their size, on numbers small enough to follow."""

from __future__ import annotations

import io

import PIL.Image
import pytest

from calumma.documents.document import Document, Image, Text
from calumma.documents.image_selection import ImageSelection, ImageSelectionConfig
from calumma.errors import DocumentError


def picture(name: str, size: tuple[int, int], score: str = "7") -> Document:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, "red").save(file, "PNG")
    parts = (Image(data=file.getvalue()), Text(name))
    return Document(id=name, content=parts, attributes={"aesthetic": score})


DOCUMENTS = [
    picture("wide", (64, 8)),
    picture("plain", (32, 32), "5.9"),
    picture("square", (30, 30), "6"),
    picture("large", (64, 64)),
    Document(id="words", content=(Text("no picture"),)),
    Document(id="broken", content=(Image(data=b"no picture"),), attributes={"aesthetic": "9"}),
]


def chosen(**fields: object) -> tuple[list[str], dict[str, int]]:
    choice = ImageSelection(ImageSelectionConfig(**fields))
    return [d.id for d in choice.select(lambda: DOCUMENTS)], dict(choice.dropped)


def test_the_finest_are_kept_and_of_them_the_nearest_to_the_square() -> None:
    kept, dropped = chosen(attribute="aesthetic", least_score=6.0, side=32, most=1)
    assert kept == ["square"]
    assert dropped == {"score": 1, "size": 2, "not one picture": 1, "unreadable": 1}


def test_size_counts_as_well_as_the_ratio_and_the_order_stays() -> None:
    assert chosen(attribute="aesthetic", side=64, most=2)[0] == ["plain", "large"]
    assert chosen(attribute="aesthetic", side=32, most=9)[0] == [
        "wide", "plain", "square", "large"
    ]  # fmt: skip


def test_a_function_of_any_package_may_measure() -> None:
    kept, dropped = chosen(
        measure="tests.documents.test_image_selection:width", least_score=40, side=64
    )
    assert kept == ["wide", "large"] and dropped["score"] == 2


def width(judged: PIL.Image.Image) -> float:
    return float(judged.width)


@pytest.mark.parametrize(("name", "found"), [("beauty", None), ("mood", "'fine'")])
def test_a_score_that_is_no_number_is_refused(name: str, found: str | None) -> None:
    document = picture("one", (8, 8))
    attributes = {"mood": "fine"}
    choice = ImageSelection(ImageSelectionConfig(attribute=name))
    with pytest.raises(DocumentError) as caught:
        list(
            choice.select(
                lambda: [Document(id="one", content=document.content, attributes=attributes)]
            )
        )
    assert str(caught.value) == (
        f"one: its attribute {name!r} is {found}; expected a number. Write the score there, or "
        "choose by --measure."
    )
