"""Threads that decode ahead: in order, bounded, and stopped by nothing."""

from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest

from calumma.documents.document import Image
from calumma.errors import ImageError
from calumma.tokens.image_prefetch import ImageInput, default_decode_threads, prefetch_images
from calumma.tokens.image_preprocessing import ResizeMode, image_to_array
from tests.images import noise, png


def to_array(image: PIL.Image.Image, mode: ResizeMode) -> np.ndarray:
    return image_to_array(image, 8, mode)


def test_images_come_out_in_the_order_given_opened_or_not() -> None:
    images: list[ImageInput] = [(Image(data=png(n, 20, 16)), "crop") for n in range(7)]
    images += [(noise(n, 20, 16), "pad") for n in range(7)]
    found = list(prefetch_images(images, to_array, num_threads=3, prefetch=4))
    expected = [image_to_array(noise(n, 20, 16), 8, "crop") for n in range(7)]
    expected += [image_to_array(noise(n, 20, 16), 8, "pad") for n in range(7)]
    assert len(found) == 14
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_broken_image_is_an_error_in_order() -> None:
    images: list[ImageInput] = [(Image(data=data), "crop") for data in (png(0), b"no", png(1))]
    first, broken, last = prefetch_images(images, to_array, num_threads=2, prefetch=2)
    assert isinstance(broken, ImageError) and "not an image" in str(broken)
    assert isinstance(first, np.ndarray) and isinstance(last, np.ndarray)


def test_an_image_that_cannot_become_square_is_named() -> None:
    thin = Image(data=png(0, 3, 900), name="docs.jsonl:7, part 0")
    [error] = prefetch_images([(thin, "crop")], to_array, num_threads=1, prefetch=1)
    assert str(error) == (
        "docs.jsonl:7, part 0: an image of 3 x 900 pixels; expected sides that differ at most "
        "100-fold. Crop it, or drop its document."
    )


def test_no_more_are_read_than_the_queue_holds() -> None:
    taken = []

    def images() -> Iterator[ImageInput]:
        for number in range(20):
            taken.append(number)
            yield noise(number), "crop"

    arrays = prefetch_images(images(), to_array, num_threads=2, prefetch=3)
    next(arrays)
    assert len(taken) == 4
    arrays.close()  # type: ignore[attr-defined]
    assert len(taken) == 4


def test_any_other_mistake_is_not_hidden() -> None:
    with pytest.raises(AttributeError):
        list(prefetch_images([("no image", "crop")], to_array, num_threads=1, prefetch=1))  # type: ignore[list-item]


def test_there_is_at_least_one_worker() -> None:
    assert 1 <= default_decode_threads() <= 16
