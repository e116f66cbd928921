"""Files of images in memory."""

import base64
import io

import numpy as np
import PIL.Image
import pytest

from calumma.documents.image_formats import data_url, encode_png, image_suffix


def test_the_suffix_of_an_image_comes_from_its_bytes() -> None:
    starts = {
        b"\x89PNG\r\n\x1a\n": ".png",
        b"\xff\xd8\xff\xe0": ".jpg",
        b"GIF89a": ".gif",
        b"RIFF\0\0\0\0WEBP": ".webp",
        b"words": ".bin",
    }
    assert {data: image_suffix(data) for data in starts} == starts


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_png_there_and_back_is_the_same_image(mode: str) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (3, 5, len(mode)), dtype=np.uint8)
    image = PIL.Image.fromarray(drawn.squeeze())
    with PIL.Image.open(io.BytesIO(encode_png(image))) as back:
        assert (back.format, back.mode) == ("PNG", mode)
        assert np.array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize(
    ("data", "media"), [(b"\xff\xd8\xff\xe0", "jpeg"), (b"RIFF\0\0\0\0WEBP", "webp"), (b"?", "png")]
)
def test_a_data_url_has_the_media_type_and_the_bytes(data: bytes, media: str) -> None:
    head, _, inside = data_url(data).partition(",")
    assert head == f"data:image/{media};base64"
    assert base64.b64decode(inside) == data
