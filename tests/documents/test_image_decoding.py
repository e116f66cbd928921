"""Images decoded completely or refused in one line, with over a hundred hostile files."""

import io
import re

import numpy as np
import PIL.Image
import pytest

from calumma.documents.document import Image
from calumma.documents.image_decoding import FORMATS, MAX_PIXELS, broken_image_message, is_image, open_image
from calumma.errors import ImageError
from tests.documents.hostile import hostile_files, ico, png, saved, scene

HOSTILE = hostile_files()


def test_there_are_a_hundred_hostile_files_and_more() -> None:
    assert len(HOSTILE) >= 100


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_opened_or_refused_in_one_line(name: str) -> None:
    data, fate = HOSTILE[name]
    try:
        image = Image(data=data, name=name).open()
    except ImageError as error:
        assert fate != "handled", str(error)
        assert str(error).startswith(f"{name}: ") and "\n" not in str(error)
        assert "document" in str(error) or "Scale" in str(error)
        return
    assert image.width * image.height <= MAX_PIXELS
    # The scene has no dark pixel: a dark one would be missing data.
    if fate == "handled" and image.mode == "RGB":
        assert np.asarray(image).min() > 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_whole_files_are_read_as_they_are(kind: str) -> None:
    image = PIL.Image.effect_noise((64, 64), 90).convert("RGB")
    data = saved(image, kind, **({"sizes": [(64, 64)]} if kind == "ICO" else {}))
    opened = open_image(data, "an image")
    assert kind in FORMATS and opened.format == kind
    assert np.array_equal(np.asarray(opened), np.asarray(PIL.Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("color", ["black", (128, 128, 128), (127, 127, 127), "white"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_complete_image_that_ends_in_black_or_gray_is_read(color: object, kind: str, mode: str) -> None:
    image = scene(side=160).copy()
    image.paste(color, (0, 70, 160, 160))  # type: ignore[arg-type]
    assert open_image(saved(image.convert(mode), kind), "an image").size == (160, 160)


@pytest.mark.parametrize("quality", [5, 50, 75, 95])
@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"optimize": True}])
def test_a_gray_jpeg_is_complete_and_half_of_a_jpeg_is_not(quality: int, settings: dict[str, bool]) -> None:
    gray = saved(PIL.Image.new("RGB", (200, 300), (128, 128, 128)), "JPEG", quality=quality)
    assert open_image(gray, "gray").size == (200, 300)
    complete = saved(scene(side=256), "JPEG", quality=quality, **settings)
    assert open_image(complete, "complete").size == (256, 256)
    if "progressive" not in settings:
        with pytest.raises(ImageError, match="its data ends before its last row"):
            open_image(complete[: len(complete) * 3 // 4] + b"\xff\xd9", "half")


def test_an_interlaced_png_that_ends_in_black_is_counted_by_its_passes() -> None:
    import zlib

    # 9 by 5 pixels of one byte: passes of 2x1, 1x1, 3x1, 2x2, 5x1, 4x3 and 9x2 with a byte a row
    sizes = [(2, 1), (1, 1), (3, 1), (2, 2), (5, 1), (4, 3), (9, 2)]
    rows = bytes(sum((columns + 1) * number for columns, number in sizes))
    complete = png(9, 5, zlib.compress(rows), kind=0, interlaced=1)
    assert open_image(complete, "complete").size == (9, 5)
    with pytest.raises(ImageError):
        open_image(png(9, 5, zlib.compress(rows[:-1]), kind=0, interlaced=1), "cut")


def test_an_icon_is_as_large_as_the_image_in_it() -> None:
    import zlib

    large = png(8001, 8000, zlib.compress(bytes(8000 * 1002)), kind=0, depth=1)
    with pytest.raises(ImageError) as caught:
        open_image(ico(large, 32), "icon")
    assert str(caught.value) == ("icon: 8001 x 8000 pixels; expected at most 64,000,000. Scale the image down.")


def test_a_reason_is_one_line_and_never_empty() -> None:
    assert broken_image_message("a.png", ValueError("two\nlines ")) == (
        "a.png: the image is corrupt or truncated (two lines); expected a complete file. Download "
        "it again, or drop its document."
    )
    assert "(IndexError)" in broken_image_message("a.png", IndexError())


def test_no_format_is_given_to_another_program() -> None:
    with pytest.raises(ImageError) as caught:
        open_image(HOSTILE["script.eps"][0], "script.eps")
    assert re.fullmatch(
        r"script\.eps: not an image \(its first bytes are b'%!PS-Ado'\); expected PNG, JPEG, WebP "
        r"or another format of Pillow\. Replace the file, or drop its document\.",
        str(caught.value),
    )


@pytest.mark.parametrize("size", [(16, 32), (32, 32), (48, 96), (64, 64), (128, 64), (80, 80), (24, 8), (8, 8)])
@pytest.mark.parametrize("optimize", [True, False])
def test_a_flat_gray_jpeg_with_the_shortest_codes_is_complete(size: tuple[int, int], optimize: bool) -> None:
    data = saved(PIL.Image.new("L", size, 128), "JPEG", optimize=optimize)
    assert open_image(data, "gray").size == size
    start = data.rindex(b"\xff\xda") + 2
    header = start + int.from_bytes(data[start : start + 2], "big")
    if min(size) >= 48:
        with pytest.raises(ImageError, match="its data ends before its last row"):
            open_image(data[:header] + b"\xff\xd9", "cut")


def test_bytes_are_recognized_as_an_image_by_their_header() -> None:
    data = saved(scene(side=16), "TIFF")
    assert is_image(data)
    assert not is_image(data[:20])
    assert not is_image(b"words")
