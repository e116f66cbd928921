"""Images made by hand, and what the release's preparation makes of them."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from calumma.checkpoints.hf_config import preprocessor_config
from calumma.errors import ImageError
from calumma.tokens.image import image_to_pixels, normalize_pixels, pixels_to_image
from calumma.tokens.image_preprocessing import image_to_array
from calumma.tokens.vq.config import VQConfig
from tests.documents.hostile import saved, scene
from tests.tokens import slow_pixels


def halves(width: int, height: int, *, across: bool) -> PIL.Image.Image:
    """Black and white halves: side by side, or one above the other if `across` is False."""
    values = np.zeros((height, width, 3), np.uint8)
    if across:
        values[:, width // 2 :] = 255
    else:
        values[height // 2 :] = 255
    return PIL.Image.fromarray(values)


def test_the_color_under_full_transparency_is_gone_before_resizing() -> None:
    image = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    pixels = image_to_pixels(image, 2)
    right = pixels[:, :, 1]
    assert right[0].min() > 0.8 and right[1].min() > 0.8  # white, with no trace of red alone


def test_pixels_run_from_minus_one_to_one() -> None:
    pixels = image_to_pixels(halves(4, 4, across=True), 4)
    assert pixels.shape == (3, 4, 4) and pixels.dtype == torch.float32
    assert pixels[0, 0].tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_an_array_is_the_same_pixels_in_a_quarter_of_the_memory() -> None:
    image = PIL.Image.effect_noise((9, 7), 50).convert("RGB")
    assert torch.equal(normalize_pixels(torch.from_numpy(image_to_array(image, 4))), image_to_pixels(image, 4))


def test_back_to_a_image_values_are_clamped_and_cut() -> None:
    pixels = torch.tensor([-7.0, 0.0, 0.999, 2.0]).view(1, 2, 2).repeat(3, 1, 1)
    # (0 + 1) / 2 * 255 = 127.5 -> 127; (0.999 + 1) / 2 * 255 = 254.87 -> 254
    assert np.asarray(pixels_to_image(pixels))[:, :, 0].tolist() == [[0, 127], [254, 255]]


def test_there_and_back_changes_a_value_by_one_at_most() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(3, 1, 1)
    back = torch.from_numpy(np.asarray(pixels_to_image(normalize_pixels(values))).copy()).permute(2, 0, 1)
    assert (back.int() - values.int()).abs().max() <= 1


@pytest.mark.parametrize(("width", "height"), [(31, 19), (16, 16), (17, 40), (5, 7), (100, 33), (20, 16)])
def test_pixels_equal_the_slow_reference(width: int, height: int) -> None:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 4), np.uint8)
    values[height // 2 :, :, 3] = 255
    image, rgb = PIL.Image.fromarray(values), slow_pixels.on_white(values)
    for fit, slow in (("crop", slow_pixels.cropped), ("pad", slow_pixels.padded)):
        found = image_to_pixels(image, 16, fit).numpy()  # type: ignore[arg-type]
        orders = [slow(rgb, 16, down_first=down_first) for down_first in (False, True)]
        assert any(np.allclose(found, expected, rtol=0, atol=1e-6) for expected in orders)
        assert all(np.abs(found - expected).max() < 0.3 for expected in orders)


# Of other sizes than these it rounds the longer side down, and of other modes it shows what
# transparency hides.
@pytest.mark.parametrize("size", [(30, 47), (64, 64), (200, 90), (33, 33), (16, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK"])
def test_transformers_agrees_with_our_file_for_its_processor(size: tuple[int, int], mode: str) -> None:
    transformers = pytest.importorskip("transformers")
    chance = np.random.default_rng(size[0])
    image = PIL.Image.fromarray(chance.integers(0, 256, (size[1], size[0], 4), np.uint8))
    image = image.convert(mode)
    name = "ChameleonImageProcessorPil"
    processor = getattr(transformers, name)(**preprocessor_config(VQConfig(resolution=32)))
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(image_to_pixels(image, 32), theirs, rtol=0, atol=1e-6)


def test_ink_that_a_jpeg_stores_inverted_is_light_again() -> None:
    adobe = saved(scene("CMYK"), "JPEG", quality=95)
    upright = image_to_array(PIL.Image.open(io.BytesIO(adobe)), 32)
    assert np.abs(upright.astype(int) - image_to_array(scene(), 32)).mean() < 4


def test_a_image_that_breaks_while_it_is_decoded_is_refused() -> None:
    complete = saved(scene(), "PNG")
    with pytest.raises(ImageError, match="an image: the image is corrupt or truncated"):
        image_to_pixels(PIL.Image.open(io.BytesIO(complete[: len(complete) // 2])), 8)


def test_an_extreme_aspect_ratio_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        image_to_pixels(PIL.Image.new("RGB", (500, 2)), 8)
    assert str(caught.value) == (
        "an image of 500 x 2 pixels; expected sides that differ at most 100-fold. Crop it, or drop its document."
    )


def test_an_unknown_resize_mode_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        image_to_pixels(PIL.Image.new("RGB", (2, 2)), 8, "stretch")  # type: ignore[arg-type]
    assert str(caught.value) == 'resize_mode=\'stretch\' is unknown; expected "crop" or "pad".'
