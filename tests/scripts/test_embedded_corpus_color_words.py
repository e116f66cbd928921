"""Color words, on colors that everybody names alike."""

import numpy as np
import PIL.Image
import pytest

from scripts.embedded_corpus.color_words import COLOR_WORDS, NO_COLOR, MainColor, color_codes, main_color

PLAIN = {
    (220, 30, 30): "red",
    (255, 130, 20): "orange",
    (252, 213, 63): "yellow",
    (30, 160, 60): "green",
    (40, 90, 220): "blue",
    (125, 50, 180): "purple",
    (245, 130, 190): "pink",
    (120, 70, 30): "brown",
    (10, 10, 10): "black",
    (250, 250, 250): "white",
    (140, 140, 140): "grey",
}


@pytest.mark.parametrize(("rgb", "word"), PLAIN.items())
def test_plain_colors_have_their_names(rgb: tuple[int, int, int], word: str) -> None:
    (code,) = color_codes(np.array([rgb], dtype=np.uint8))
    assert COLOR_WORDS[code] == word


def test_beige_has_no_word() -> None:
    assert color_codes(np.array([[240, 220, 190]], dtype=np.uint8)).tolist() == [NO_COLOR]


def test_only_opaque_pixels_count() -> None:
    image = PIL.Image.new("RGBA", (4, 4), (220, 30, 30, 0))
    image.paste((40, 90, 220, 255), (0, 0, 4, 1))
    assert main_color(image) == MainColor("blue", 1.0)


def test_the_share_is_of_all_opaque_pixels() -> None:
    image = PIL.Image.new("RGB", (4, 4), (220, 30, 30))
    image.paste((250, 250, 250), (0, 0, 4, 1))
    assert main_color(image) == MainColor("red", 0.75)


def test_an_image_without_opaque_pixels_has_no_color() -> None:
    assert main_color(PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0))) is None
