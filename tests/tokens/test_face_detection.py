"""Faces found by the cascade of a package."""

import sys

import PIL.Image
import PIL.ImageDraw
import pytest

from calumma.errors import ConfigError
from calumma.tokens.face_detection import haar_face_detector
from tests.images import noise


def drawn_face(left: int) -> PIL.Image.Image:
    """Draw an egg with brows, eyes, a nose and a mouth, 200 pixels high, on an image of 480 x
    320."""
    image = PIL.Image.new("L", (480, 320), 120)
    draw = PIL.ImageDraw.Draw(image)
    draw.ellipse((left, 50, left + 160, 260), fill=200)
    for x in (left + 32, left + 96):
        draw.rectangle((x, 112, x + 34, 120), fill=90)
        draw.ellipse((x, 124, x + 34, 144), fill=60)
    draw.rectangle((left + 72, 130, left + 88, 180), fill=215)
    draw.ellipse((left + 66, 176, left + 94, 190), fill=130)
    draw.rectangle((left + 50, 208, left + 110, 220), fill=80)
    return image


def test_the_cascade_finds_a_drawn_face_where_it_is_and_none_in_noise() -> None:
    find = haar_face_detector()
    found = find(drawn_face(100).convert("RGB"))
    assert len(found) == 1
    left, top, right, bottom = found[0]
    assert left < 180 / 480 < right and top < 155 / 320 < bottom
    assert right - left < 0.6
    assert find(noise(0, 128, 128)) == []


def test_without_opencv_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError) as caught:
        haar_face_detector()
    assert str(caught.value) == (
        'regions.faces="haar" needs OpenCV 4 with its cascades, which is not installed; '
        "expected it. Install it with `pip install 'calumma[faces]'`."
    )
