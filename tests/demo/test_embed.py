import base64
import io
import re

import numpy as np
import PIL.Image
import pytest

from calumma.demo.embed import MAX_SIDE, duration, escaped, number, picture


def decoded(tag: str) -> PIL.Image.Image:
    found = re.search(r'src="data:image/png;base64,([^"]+)"', tag)
    assert found
    return PIL.Image.open(io.BytesIO(base64.b64decode(found[1])))


def test_a_picture_comes_out_of_the_page_as_it_went_in() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    tag = picture(PIL.Image.fromarray(pixels), "noise")
    assert np.array_equal(np.asarray(decoded(tag)), pixels)


def test_pixels_are_shown_at_a_whole_multiple() -> None:
    tag = picture(PIL.Image.new("RGB", (64, 32)), "wide", shown_side=120)
    assert 'width="128" height="64"' in tag
    assert 'width="300"' not in picture(PIL.Image.new("RGB", (300, 300)), "large")


def test_a_large_picture_is_made_smaller_and_the_given_one_left_alone() -> None:
    image = PIL.Image.new("RGB", (1000, 500), "red")
    assert decoded(picture(image, "large")).size == (MAX_SIDE, MAX_SIDE // 2)
    assert image.size == (1000, 500)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA"])
def test_every_mode_of_picture_is_taken(mode: str) -> None:
    assert decoded(picture(PIL.Image.new(mode, (4, 4)), mode)).size == (4, 4)


def test_what_a_picture_shows_is_escaped() -> None:
    assert 'alt="&quot;&gt;&lt;script&gt;"' in picture(PIL.Image.new("L", (1, 1)), '"><script>')


def test_text_is_escaped_in_elements_and_attributes() -> None:
    assert escaped("a & 'b' <c>") == "a &amp; &#x27;b&#x27; &lt;c&gt;"


def test_numbers_by_hand() -> None:
    assert [number(value) for value in (0.0, 2.0, 0.05, 1400, -2.5)] == (
        ["0", "2", "0.05", "1,400", "−2.5"]
    )


def test_times_by_hand() -> None:
    times = [duration(value) for value in (0, 59.94, 59.96, 60, 574, 3599.7, 7200)]
    assert times == (
        ["0.0 s", "59.9 s", "1 min 0 s", "1 min 0 s", "9 min 34 s", "1 h 0 min", "2 h 0 min"]
    )
