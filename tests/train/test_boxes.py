"""Boxes around faces and salient things: found, given, kept and gone on with."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from calumma.documents.document import Document, Image
from calumma.errors import ConfigError, DocumentError
from calumma.train import boxes
from calumma.train.boxes import cascade_faces, find_boxes, given_boxes, salient_object
from calumma.train.pictures import Box, Pictures
from tests.pictures import noise, png


def drawn_face(left: int) -> PIL.Image.Image:
    """An egg with brows, eyes, a nose and a mouth, 200 pixels high, on a picture of 480 x 320."""
    picture = PIL.Image.new("L", (480, 320), 120)
    draw = PIL.ImageDraw.Draw(picture)
    draw.ellipse((left, 50, left + 160, 260), fill=200)
    for eye in (left + 32, left + 96):
        draw.rectangle((eye, 112, eye + 34, 120), fill=90)
        draw.ellipse((eye, 124, eye + 34, 144), fill=60)
    draw.rectangle((left + 72, 130, left + 88, 180), fill=215)
    draw.ellipse((left + 66, 176, left + 94, 190), fill=130)
    draw.rectangle((left + 50, 208, left + 110, 220), fill=80)
    return picture


def test_the_cascade_finds_a_drawn_face_where_it_is_and_none_in_noise() -> None:
    find = cascade_faces()
    found = find(drawn_face(100).convert("RGB"))
    assert len(found) == 1
    left, top, right, bottom = found[0]
    assert left < 180 / 480 < right and top < 155 / 320 < bottom
    assert right - left < 0.6
    assert find(noise(0, 128, 128)) == []


def test_without_opencv_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError) as caught:
        cascade_faces()
    assert str(caught.value) == (
        'regions.faces="haar" needs OpenCV 4 with its cascades, which is not installed. '
        "`pip install 'calumma[faces]'` brings it."
    )


def test_what_stands_out_is_boxed() -> None:
    picture = PIL.Image.new("RGB", (128, 128), (120, 130, 140))
    PIL.ImageDraw.Draw(picture).ellipse((16, 80, 48, 104), fill=(220, 40, 40))
    ((left, top, right, bottom),) = salient_object(picture)
    found, wanted = np.array([left, top, right, bottom]), np.array([16, 80, 48, 104]) / 128
    assert np.abs(found - wanted).max() < 0.03


def test_nothing_stands_out_of_a_plain_picture() -> None:
    assert salient_object(PIL.Image.new("RGB", (40, 30), "red")) == []


REFUSALS = ("0.1 0.2 0.3", "0.5 0.5 0.4 0.6", "0 0 1 2", "a b c d")


@pytest.mark.parametrize("text", REFUSALS)
def test_what_is_no_box_is_refused(text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        given_boxes(text, "picture 3, attribute faces")
    assert str(caught.value) == (
        f"picture 3, attribute faces: found the box {text!r}; wanted left, top, right and bottom "
        'as shares of width and height, such as "0.1 0.2 0.5 0.6; 0 0 1 1". Mend the attribute.'
    )


def pictures(number: int = 4) -> Pictures:
    attributes = {"faces": "0 0 0.5 0.5"}
    images = [(Image(data=png(n)),) for n in range(number)]
    return Pictures(
        [Document(id=str(n), content=i, attributes=attributes) for n, i in enumerate(images)], 16
    )


def test_boxes_are_found_once_and_a_stopped_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxes, "_SAVED_EVERY", 2)
    asked: list[int] = []

    def find(picture: PIL.Image.Image) -> list[Box]:
        asked.append(len(asked))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return [(0.0, 0.0, 1.0, 0.5)]

    with pytest.raises(KeyboardInterrupt):
        find_boxes(pictures(), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    found = find_boxes(pictures(), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    # four before the stop, of which two were saved; then the two that were missing
    assert len(asked) == 6
    assert len(found["objects"]) == len(found["faces"]) == 4
    again = find_boxes(pictures(), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    assert len(asked) == 6
    assert [[list(b) for b in one] for one in again["faces"]] == [[[0.0, 0.0, 0.5, 0.5]]] * 4
    find_boxes(pictures(3), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    assert len(asked) == 9
