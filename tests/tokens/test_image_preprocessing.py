"""Images of every mode and size, made by hand, and the square that each becomes."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from calumma.errors import ImageError
from calumma.tokens.image_preprocessing import mask_to_size, named_errors, to_rgb, to_square
from tests.documents.hostile import lab_tiff, saved, scene


def halves(width: int, height: int, *, across: bool) -> PIL.Image.Image:
    """Black and white halves: side by side, or one above the other if `across` is False."""
    values = np.zeros((height, width, 3), np.uint8)
    if across:
        values[:, width // 2 :] = 255
    else:
        values[height // 2 :] = 255
    return PIL.Image.fromarray(values)


def test_transparency_is_blended_on_white_and_cut_to_whole_numbers() -> None:
    image = PIL.Image.new("RGBA", (1, 1), (10, 100, 200, 100))
    # (1 - 100/255) * 255 + 100/255 * v = 155 + 0.392157 v: 158.92, 194.2, 233.4
    assert to_rgb(image).getpixel((0, 0)) == (158, 194, 233)


def test_a_palette_with_a_transparent_entry_is_put_on_white() -> None:
    image = PIL.Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 0
    rgb = to_rgb(image)
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]


def test_sixteen_bits_keep_their_high_byte() -> None:
    values = np.array([[0, 0x80FF, 0xFFFF]], np.uint16)
    rgb = to_rgb(PIL.Image.fromarray(values))
    assert [rgb.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128,) * 3, (255,) * 3]


def sixteen_bit_png(values: np.ndarray, kind: int, key: bytes) -> PIL.Image.Image:
    """Return a PNG of 16 bits a value with a transparent color."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"tRNS", key)]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    made = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return PIL.Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(made)))


def test_the_transparent_color_of_a_sixteen_bit_png_is_put_on_white() -> None:
    gray = to_rgb(sixteen_bit_png(np.array([[0, 0x0001, 0x8000]]), 0, b"\0\0"))
    assert [gray.getpixel((x, 0)) for x in range(3)] == [(255,) * 3, (0,) * 3, (128,) * 3]
    values = np.array([[[0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0]]])
    color = to_rgb(sixteen_bit_png(values, 2, struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)))
    assert [color.getpixel((x, 0)) for x in range(2)] == [(255,) * 3, (0x12, 0x56, 0)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "I", "RGBA", "RGB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert to_rgb(PIL.Image.new(mode, (3, 2))).mode == "RGB"


def test_cmyk_ink_darkens() -> None:
    image = PIL.Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    assert to_rgb(image).getpixel((0, 0)) == (0, 255, 255)


def test_a_camera_held_sideways_is_turned_upright_first() -> None:
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera's top is the image's right
    halves(8, 4, across=True).save(file, "PNG", exif=exif)
    upright = to_rgb(PIL.Image.open(file))
    assert upright.size == (4, 8)
    assert upright.getpixel((0, 0)) == (0, 0, 0) and upright.getpixel((0, 7)) == (255,) * 3


def test_the_shorter_side_is_resized_and_the_middle_cut_out() -> None:
    values = np.zeros((2, 7, 3), np.uint8)
    values[:, :, 0] = np.arange(7) * 10
    square = to_square(PIL.Image.fromarray(values), 2)
    # no resizing: 7 wide, (7 - 2) // 2 = 2 is the left edge
    assert np.asarray(square)[0, :, 0].tolist() == [20, 30]


def test_the_longer_side_is_rounded() -> None:
    # 10 x 3 to 8: the scale is 8/3, the longer side 26.67 -> 27, its left edge (27 - 8) // 2 = 9
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 10, 3), np.uint8))
    expected = image.resize((27, 8), PIL.Image.Resampling.LANCZOS).crop((9, 0, 17, 8))
    assert np.array_equal(np.asarray(to_square(image, 8)), np.asarray(expected))


def test_padding_keeps_the_whole_image_between_white_borders() -> None:
    square = np.asarray(to_square(PIL.Image.new("RGB", (8, 4)), 8, "pad"))
    assert square[:, 0, 0].tolist() == [255, 255, 0, 0, 0, 0, 255, 255]


def test_floats_are_fractions_or_bytes_or_sixteen_bits_by_their_range() -> None:
    def gray(values: list[float]) -> list[int]:
        image = PIL.Image.fromarray(np.array([values], np.float32))
        return np.asarray(to_rgb(image))[0, :, 0].tolist()

    assert gray([0.0, 0.5, 1.0]) == [0, 127, 255]
    assert gray([0.0, 99.9, 255.0]) == [0, 99, 255]
    assert gray([0.0, 0x80FF, 0xFFFF]) == [0, 128, 255]


def test_whole_numbers_of_32_bits_may_hold_8() -> None:
    eight = PIL.Image.fromarray(np.array([[0, 7, 200]], np.int32))
    assert np.asarray(to_rgb(eight))[0, :, 0].tolist() == [0, 7, 200]
    deep = PIL.Image.open(io.BytesIO(b"P5 2 1 65535\n\0\xc8\x80\0"))
    assert np.asarray(to_rgb(deep))[0, :, 0].tolist() == [0, 128]


@pytest.mark.parametrize(
    ("values", "found"), [([0.0, float("nan")], "nan to nan"), ([-1.0, 1.0], "-1 to 1"), ([0, 1e9], "0 to 1e+09")]
)
def test_numbers_that_are_no_brightness_are_refused(values: list[float], found: str) -> None:
    with pytest.raises(ImageError) as caught:
        to_rgb(PIL.Image.fromarray(np.array([values], np.float32)))
    assert str(caught.value) == (
        f"an image of numbers from {found}; expected 0 to 1, 0 to 255 or 0 to 65,535. Scale them, "
        "or drop its document."
    )


def test_lab_becomes_the_color_that_it_names() -> None:
    # L 78 %, a 20, b 9 is a pale pink: sRGB 232, 178, 177 by the formulas of CIELAB.
    color = np.array(to_rgb(PIL.Image.open(io.BytesIO(lab_tiff()))).getpixel((3, 3)))
    assert np.abs(color - [232, 178, 177]).max() <= 4


def test_premultiplied_gray_is_put_on_white() -> None:
    image = PIL.Image.new("LA", (1, 1), (100, 100)).convert("La")
    assert to_rgb(image).getpixel((0, 0)) == (193, 193, 193)


def test_broken_exif_turns_nothing() -> None:
    data = saved(scene(), "PNG", exif=b"Exif\0\0words")
    assert np.array_equal(np.asarray(to_rgb(PIL.Image.open(io.BytesIO(data)))), np.asarray(scene()))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_turns_it_and_only_once(orientation: int) -> None:
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    scene().crop((0, 0, 40, 20)).save(file, "PNG", exif=exif)
    image = PIL.Image.open(file)
    expected = np.asarray(PIL.ImageOps.exif_transpose(image))
    once = to_rgb(image)
    assert np.array_equal(np.asarray(once), expected)
    assert np.array_equal(np.asarray(to_rgb(once)), expected)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("an image: not decodable; expected a file.", "not decodable; expected a file."),
        ("an image of numbers; expected 0 to 1.", "an image of numbers; expected 0 to 1."),
    ],
)
def test_errors_begin_with_the_name_of_the_image(message: str, named: str) -> None:
    with pytest.raises(ImageError) as caught, named_errors("a.png"):
        raise ImageError(message)
    assert str(caught.value) == f"a.png: {named}"


def test_masks_select_transparent_or_light_pixels() -> None:
    clear = PIL.Image.new("RGBA", (32, 16), (0, 0, 0, 255))
    clear.putpixel((9, 3), (255, 255, 255, 0))
    light = PIL.Image.new("RGB", (32, 16))
    light.putpixel((9, 3), (200, 200, 200))
    for mask in (clear, light):
        square = mask_to_size(mask, 8, 8)
        assert (square.size, square.mode) == ((8, 8), "L")
        assert np.argwhere(np.asarray(square)).tolist() == [[1, 0]]
        assert square.getextrema() == (0, 255)
