"""Boxes of faces and salient objects: detected, given, saved and resumed."""

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


def test_a_salient_object_is_boxed() -> None:
    image = PIL.Image.new("RGB", (128, 128), (120, 130, 140))
    PIL.ImageDraw.Draw(image).ellipse((16, 80, 48, 104), fill=(220, 40, 40))
    ((left, top, right, bottom),) = salient_object(image)
    found, expected = np.array([left, top, right, bottom]), np.array([16, 80, 48, 104]) / 128
    assert np.abs(found - expected).max() < 0.03


def test_a_plain_image_has_no_salient_object() -> None:
    assert salient_object(PIL.Image.new("RGB", (40, 30), "red")) == []


REFUSALS = ("0.1 0.2 0.3", "0.5 0.5 0.4 0.6", "0 0 1 2", "a b c d")


@pytest.mark.parametrize("text", REFUSALS)
def test_malformed_boxes_are_refused(text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_boxes(text, "image 3, attribute faces")
    assert str(caught.value) == (
        f"image 3, attribute faces: found the box {text!r}; expected left, top, right and bottom "
        'in fractions of width and height, such as "0.1 0.2 0.5 0.6; 0 0 1 1". Fix the attribute.'
    )


def dataset(number: int = 4) -> ImageDataset:
    attributes = {"faces": "0 0 0.5 0.5"}
    images = [(Image(data=png(n)),) for n in range(number)]
    return ImageDataset([Document(id=str(n), content=i, attributes=attributes) for n, i in enumerate(images)], 16)


def test_boxes_are_detected_once_and_an_interrupted_search_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_detection, "_SAVE_INTERVAL", 2)
    calls: list[int] = []

    def find(image: PIL.Image.Image) -> list[FaceBox]:
        calls.append(len(calls))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return [(0.0, 0.0, 1.0, 0.5)]

    with pytest.raises(KeyboardInterrupt):
        detect_boxes(dataset(), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    found = detect_boxes(dataset(), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    # four before the stop, of which two were saved; then the two that were missing
    assert len(calls) == 6
    assert len(found["objects"]) == len(found["faces"]) == 4
    again = detect_boxes(dataset(), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    assert len(calls) == 6
    assert [[list(b) for b in one] for one in again["faces"]] == [[[0.0, 0.0, 0.5, 0.5]]] * 4
    detect_boxes(dataset(3), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    assert len(calls) == 9
