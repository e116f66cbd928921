"""Images: drawn, fitted, and refused."""

import io
import sys
from pathlib import Path

import PIL.Image
import pytest

from calumma.corpora.image_conversion import (
    encode_webp,
    fit_within,
    has_transparency,
    image_from_file,
    image_size,
    rasterize_svg,
    shrink_image,
)
from calumma.errors import CorpusError, ImageError

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}"><rect width="5" height="5" fill="red"/></svg>'


def saved(path: Path, size: tuple[int, int], color: str = "red") -> Path:
    PIL.Image.new("RGB", size, color).save(path)
    return path


@pytest.mark.parametrize(("width", "height"), [(10, 10), (10, 20), (20, 10)])
def test_a_vector_fits_the_square_and_keeps_its_shape(width: int, height: int) -> None:
    image = PIL.Image.open(io.BytesIO(rasterize_svg(SVG.format(width, height), 64)))
    assert max(image.size) == 64
    assert image.width * height == image.height * width
    assert has_transparency(image)


def test_a_vector_that_is_none_is_refused() -> None:
    with pytest.raises(ImageError, match="an SVG image cannot be rasterized") as caught:
        rasterize_svg("<p>no drawing")
    assert str(caught.value).endswith("expected valid SVG. Exclude it.")


def test_without_resvg_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(CorpusError) as caught:
        rasterize_svg(SVG.format(1, 1))
    assert str(caught.value) == (
        "this corpus contains SVG images, and resvg_py is not installed; expected it to rasterize "
        "them. Install it: pip install 'calumma[corpora]'."
    )


def test_small_images_are_passed_on_as_they_are(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", (30, 20))
    assert shrink_image(image_from_file(path)).data == path.read_bytes()


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", (1024, 256))
    assert shrink_image(image_from_file(path)).open().size == (512, 128)


def test_a_file_without_an_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("no picture")
    with pytest.raises(ImageError) as caught:
        image_from_file(path)
    assert str(caught.value) == f"{path}: not an image; expected one. Exclude it."


def test_an_image_with_too_many_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PIL.Image.new("1", (10_000, 6_401)).save(path)
    with pytest.raises(ImageError) as caught:
        image_size(path)
    assert str(caught.value) == (f"{path}: 10000 x 6401 pixels; expected at most 64,000,000. Exclude it.")


def test_fitting_never_enlarges() -> None:
    assert fit_within(PIL.Image.new("RGB", (10, 5)), 64).size == (10, 5)


def test_webp_keeps_what_is_transparent() -> None:
    image = PIL.Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    kept = PIL.Image.open(io.BytesIO(encode_webp(image, 60))).convert("RGBA")
    assert kept.getpixel((2, 2))[3] == 0
    assert kept.getpixel((60, 2))[3] == 255
