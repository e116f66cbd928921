"""Shapes have their colors, and images come back from their bytes."""

import io

import PIL.Image
import pytest

from calumma.corpora.synthetic_scenes import GROUNDS, SHAPES, draw_shape, encode_fast_png


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("box", [20, 52])
def test_a_shape_has_its_color_and_is_transparent_elsewhere(shape: str, box: int) -> None:
    image = draw_shape(shape, GROUNDS["yellow"], box)
    assert (image.mode, image.size) == ("RGBA", (box, box))
    opaque = (*GROUNDS["yellow"], 255)
    middle = image.getpixel((box // 2, box // 2))
    assert isinstance(middle, tuple)
    assert middle[3] == 0 if shape == "ring" else middle == opaque
    colors = {color: count for count, color in image.getcolors(box * box) or []}
    assert colors[opaque] > box


def test_a_square_fills_its_box() -> None:
    assert draw_shape("square", GROUNDS["white"], 20).getcolors() == [(400, (*GROUNDS["white"], 255))]


def test_an_image_comes_back_from_its_bytes() -> None:
    image = draw_shape("cross", GROUNDS["red"], 16)
    assert PIL.Image.open(io.BytesIO(encode_fast_png(image))).tobytes() == image.tobytes()
