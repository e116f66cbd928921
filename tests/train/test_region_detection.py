"""Boxes around faces and salient things: found, given, kept and gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from calumma.documents.document import Document, Image
from calumma.errors import DocumentError
from calumma.tokens.face_detection import FaceBox
from calumma.train import region_detection
from calumma.train.image_dataset import ImageDataset
from calumma.train.region_detection import detect_boxes, parse_boxes, salient_object
from tests.images import png


def test_what_stands_out_is_boxed() -> None:
    picture = PIL.Image.new("RGB", (128, 128), (120, 130, 140))
    PIL.ImageDraw.Draw(picture).ellipse((16, 80, 48, 104), fill=(220, 40, 40))
    ((left, top, right, bottom),) = salient_object(picture)
    found, expected = np.array([left, top, right, bottom]), np.array([16, 80, 48, 104]) / 128
    assert np.abs(found - expected).max() < 0.03


def test_nothing_stands_out_of_a_plain_picture() -> None:
    assert salient_object(PIL.Image.new("RGB", (40, 30), "red")) == []


REFUSALS = ("0.1 0.2 0.3", "0.5 0.5 0.4 0.6", "0 0 1 2", "a b c d")


@pytest.mark.parametrize("text", REFUSALS)
def test_what_is_no_box_is_refused(text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_boxes(text, "picture 3, attribute faces")
    assert str(caught.value) == (
        f"picture 3, attribute faces: found the box {text!r}; expected left, top, right and bottom "
        'as shares of width and height, such as "0.1 0.2 0.5 0.6; 0 0 1 1". Fix the attribute.'
    )


def pictures(number: int = 4) -> ImageDataset:
    attributes = {"faces": "0 0 0.5 0.5"}
    images = [(Image(data=png(n)),) for n in range(number)]
    return ImageDataset(
        [Document(id=str(n), content=i, attributes=attributes) for n, i in enumerate(images)], 16
    )


def test_boxes_are_found_once_and_a_stopped_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_detection, "_SAVED_EVERY", 2)
    asked: list[int] = []

    def find(picture: PIL.Image.Image) -> list[FaceBox]:
        asked.append(len(asked))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return [(0.0, 0.0, 1.0, 0.5)]

    with pytest.raises(KeyboardInterrupt):
        detect_boxes(
            pictures(), {"objects": find, "faces": None}, tmp_path / "region_detection.json"
        )
    found = detect_boxes(
        pictures(), {"objects": find, "faces": None}, tmp_path / "region_detection.json"
    )
    # four before the stop, of which two were saved; then the two that were missing
    assert len(asked) == 6
    assert len(found["objects"]) == len(found["faces"]) == 4
    again = detect_boxes(
        pictures(), {"objects": find, "faces": None}, tmp_path / "region_detection.json"
    )
    assert len(asked) == 6
    assert [[list(b) for b in one] for one in again["faces"]] == [[[0.0, 0.0, 0.5, 0.5]]] * 4
    detect_boxes(pictures(3), {"objects": find, "faces": None}, tmp_path / "region_detection.json")
    assert len(asked) == 9
