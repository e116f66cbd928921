"""Slots: marks in texts and image parts without an image."""

from typing import Any

import pytest

from calumma.documents.image_slots import count_slots, fill_slots
from calumma.errors import DocumentError

A, B = {"type": "image", "path": "a.png"}, {"type": "image", "path": "b.png"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<image>one\n<image>\ntwo", [A, text("one"), B, text("two")]),
        ([{"type": "image"}, "x", {"type": "image", "path": None}], [A, "x", B]),
        ([text("a<image>"), {"type": "image", "path": "c.png"}, {"type": "image_url"}],
         [text("a"), A, {"type": "image", "path": "c.png"}, B]),
        ([{"role": "user", "content": "<image><image>"}], [{"role": "user", "content": [A, B]}]),
    ],
)  # fmt: skip
def test_images_fill_the_slots_in_reading_order(value: Any, expected: Any) -> None:
    assert count_slots(value) == 2
    assert fill_slots(value, [A, B], "x") == expected


@pytest.mark.parametrize("value", [None, 3, "no mark", [], {"type": "image", "bytes": b""}])
def test_values_without_slots(value: Any) -> None:
    assert count_slots(value) == 0
    assert fill_slots(value, [], "x") == value


def test_another_number_of_images_is_refused() -> None:
    with pytest.raises(DocumentError) as caught:
        fill_slots("<image>", [A, B], "x")
    assert str(caught.value) == (
        "x: 2 images for 1 slots (<image> marks and image parts without an image); expected as many slots as images. "
        "Fix the row, or drop the document."
    )
