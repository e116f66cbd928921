"""Pictures made by hand, and what the release's preparation makes of them."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from calumma.checkpoints.hugging_face import preprocessor_config
from calumma.errors import ImageError
from calumma.tokens.pixels import scaled, to_array, to_picture, to_pixels, to_rgb, to_square
from calumma.tokens.vq.config import VQConfig
from tests.documents.hostile import lab_tiff, saved, scene
from tests.tokens import slow_pixels


def halves(width: int, height: int, *, across: bool) -> PIL.Image.Image:
    """Black and white halves: side by side, or one above the other if `across` is False."""
    values = np.zeros((height, width, 3), np.uint8)
    if across:
        values[:, width // 2 :] = 255
    else:
        values[height // 2 :] = 255
    return PIL.Image.fromarray(values)


def test_transparency_is_blended_on_white_and_cut_to_whole_numbers() -> None:
    picture = PIL.Image.new("RGBA", (1, 1), (10, 100, 200, 100))
    # (1 - 100/255) * 255 + 100/255 * v = 155 + 0.392157 v: 158.92, 194.2, 233.4
    assert to_rgb(picture).getpixel((0, 0)) == (158, 194, 233)


def test_the_colour_under_full_transparency_is_gone_before_resizing() -> None:
    picture = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 4, 8))
    pixels = to_pixels(picture, 2)
    right = pixels[:, :, 1]
    assert right[0].min() > 0.8 and right[1].min() > 0.8  # white, with no trace of red alone


def test_a_palette_with_a_transparent_entry_is_put_on_white() -> None:
    picture = PIL.Image.new("P", (2, 1), 0)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    picture.info["transparency"] = 0
    rgb = to_rgb(picture)
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]


def test_sixteen_bits_keep_their_high_byte() -> None:
    values = np.array([[0, 0x80FF, 0xFFFF]], np.uint16)
    rgb = to_rgb(PIL.Image.fromarray(values))
    assert [rgb.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128,) * 3, (255,) * 3]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "I", "RGBA", "RGB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert to_rgb(PIL.Image.new(mode, (3, 2))).mode == "RGB"


def test_cmyk_ink_darkens() -> None:
    picture = PIL.Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    assert to_rgb(picture).getpixel((0, 0)) == (0, 255, 255)


def test_a_camera_held_sideways_is_turned_upright_first() -> None:
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera's top is the picture's right
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
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 10, 3), np.uint8))
    wanted = picture.resize((27, 8), PIL.Image.Resampling.LANCZOS).crop((9, 0, 17, 8))
    assert np.array_equal(np.asarray(to_square(picture, 8)), np.asarray(wanted))


def test_padding_keeps_the_whole_picture_between_white_borders() -> None:
    square = np.asarray(to_square(PIL.Image.new("RGB", (8, 4)), 8, "pad"))
    assert square[:, 0, 0].tolist() == [255, 255, 0, 0, 0, 0, 255, 255]


def test_pixels_run_from_minus_one_to_one() -> None:
    pixels = to_pixels(halves(4, 4, across=True), 4)
    assert pixels.shape == (3, 4, 4) and pixels.dtype == torch.float32
    assert pixels[0, 0].tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_an_array_is_the_same_pixels_in_a_quarter_of_the_room() -> None:
    picture = PIL.Image.effect_noise((9, 7), 50).convert("RGB")
    assert torch.equal(scaled(torch.from_numpy(to_array(picture, 4))), to_pixels(picture, 4))


def test_back_to_a_picture_values_are_clamped_and_cut() -> None:
    pixels = torch.tensor([-7.0, 0.0, 0.999, 2.0]).view(1, 2, 2).repeat(3, 1, 1)
    # (0 + 1) / 2 * 255 = 127.5 -> 127; (0.999 + 1) / 2 * 255 = 254.87 -> 254
    assert np.asarray(to_picture(pixels))[:, :, 0].tolist() == [[0, 127], [254, 255]]


def test_there_and_back_changes_a_value_by_one_at_most() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(3, 1, 1)
    back = torch.from_numpy(np.asarray(to_picture(scaled(values))).copy()).permute(2, 0, 1)
    assert (back.int() - values.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("width", "height"), [(31, 19), (16, 16), (17, 40), (5, 7), (100, 33), (20, 16)]
)
def test_pixels_equal_the_slow_reference(width: int, height: int) -> None:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 4), np.uint8)
    values[height // 2 :, :, 3] = 255
    picture, rgb = PIL.Image.fromarray(values), slow_pixels.on_white(values)
    for fit, slow in (("crop", slow_pixels.cropped), ("pad", slow_pixels.padded)):
        found = to_pixels(picture, 16, fit).numpy()  # type: ignore[arg-type]
        orders = [slow(rgb, 16, down_first=down_first) for down_first in (False, True)]
        assert any(np.allclose(found, wanted, rtol=0, atol=1e-6) for wanted in orders)
        assert all(np.abs(found - wanted).max() < 0.3 for wanted in orders)


# Of other sizes than these it rounds the longer side down, and of other modes it shows what
# transparency hides.
@pytest.mark.parametrize("size", [(30, 47), (64, 64), (200, 90), (33, 33), (16, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK"])
def test_transformers_agrees_with_our_file_for_its_processor(
    size: tuple[int, int], mode: str
) -> None:
    transformers = pytest.importorskip("transformers")
    chance = np.random.default_rng(size[0])
    picture = PIL.Image.fromarray(chance.integers(0, 256, (size[1], size[0], 4), np.uint8))
    picture = picture.convert(mode)
    name = "ChameleonImageProcessorPil"
    processor = getattr(transformers, name)(**preprocessor_config(VQConfig(resolution=32)))
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(to_pixels(picture, 32), theirs, rtol=0, atol=1e-6)


def test_floats_are_fractions_or_bytes_or_sixteen_bits_by_their_range() -> None:
    def grey(values: list[float]) -> list[int]:
        picture = PIL.Image.fromarray(np.array([values], np.float32))
        return np.asarray(to_rgb(picture))[0, :, 0].tolist()

    assert grey([0.0, 0.5, 1.0]) == [0, 127, 255]
    assert grey([0.0, 99.9, 255.0]) == [0, 99, 255]
    assert grey([0.0, 0x80FF, 0xFFFF]) == [0, 128, 255]


def test_whole_numbers_of_32_bits_may_hold_8() -> None:
    eight = PIL.Image.fromarray(np.array([[0, 7, 200]], np.int32))
    assert np.asarray(to_rgb(eight))[0, :, 0].tolist() == [0, 7, 200]
    deep = PIL.Image.open(io.BytesIO(b"P5 2 1 65535\n\0\xc8\x80\0"))
    assert np.asarray(to_rgb(deep))[0, :, 0].tolist() == [0, 128]


@pytest.mark.parametrize(
    ("values", "found"),
    [([0.0, float("nan")], "nan to nan"), ([-1.0, 1.0], "-1 to 1"), ([0, 1e9], "0 to 1e+09")],
)
def test_numbers_that_are_no_brightness_are_refused(values: list[float], found: str) -> None:
    with pytest.raises(ImageError) as caught:
        to_rgb(PIL.Image.fromarray(np.array([values], np.float32)))
    assert str(caught.value) == (
        f"a picture of numbers from {found}; wanted 0 to 1, 0 to 255 or 0 to 65,535. Scale them, "
        "or leave its document out."
    )


def test_ink_that_a_jpeg_stores_inverted_is_light_again() -> None:
    adobe = saved(scene("CMYK"), "JPEG", quality=95)
    upright = to_array(PIL.Image.open(io.BytesIO(adobe)), 32)
    assert np.abs(upright.astype(int) - to_array(scene(), 32)).mean() < 4


def test_lab_becomes_the_colour_that_it_names() -> None:
    # L 78 %, a 20, b 9 is a pale pink: sRGB 232, 178, 177 by the formulas of CIELAB.
    colour = np.array(to_rgb(PIL.Image.open(io.BytesIO(lab_tiff()))).getpixel((3, 3)))
    assert np.abs(colour - [232, 178, 177]).max() <= 4


def test_premultiplied_grey_is_put_on_white() -> None:
    picture = PIL.Image.new("LA", (1, 1), (100, 100)).convert("La")
    assert to_rgb(picture).getpixel((0, 0)) == (193, 193, 193)


def test_broken_exif_turns_nothing() -> None:
    data = saved(scene(), "PNG", exif=b"Exif\0\0words")
    assert np.array_equal(np.asarray(to_rgb(PIL.Image.open(io.BytesIO(data)))), np.asarray(scene()))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_turns_it_and_only_once(orientation: int) -> None:
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    scene().crop((0, 0, 40, 20)).save(file, "PNG", exif=exif)
    picture = PIL.Image.open(file)
    wanted = np.asarray(PIL.ImageOps.exif_transpose(picture))
    once = to_rgb(picture)
    assert np.array_equal(np.asarray(once), wanted)
    assert np.array_equal(np.asarray(to_rgb(once)), wanted)


def test_a_picture_that_breaks_while_it_is_decoded_is_refused() -> None:
    whole = saved(scene(), "PNG")
    with pytest.raises(ImageError, match="a picture: the picture is broken or cut short"):
        to_pixels(PIL.Image.open(io.BytesIO(whole[: len(whole) // 2])), 8)


def test_a_mere_line_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        to_pixels(PIL.Image.new("RGB", (500, 2)), 8)
    assert str(caught.value) == (
        "a picture of 500 x 2 pixels; wanted sides that differ at most 100-fold. Cut it, or "
        "leave its document out."
    )


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        to_pixels(PIL.Image.new("RGB", (2, 2)), 8, "stretch")  # type: ignore[arg-type]
    assert str(caught.value) == 'fit=\'stretch\' is not known; wanted "crop" or "pad".'
