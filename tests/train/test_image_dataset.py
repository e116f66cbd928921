"""Batches of pictures: once an epoch, cut anew each time, shared by ranks."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch

from calumma.documents.document import Document, Image, Text
from calumma.errors import DocumentError
from calumma.tokens.pixels import image_to_pixels
from calumma.train.config_image_tokenizer import AugmentConfig
from calumma.train.distributed import DistContext
from calumma.train.image_dataset import Crop, ImageDataset
from tests.images import png


def documents(number: int = 5, width: int = 16) -> list[Document]:
    return [Document(id=str(n), content=(Image(data=png(n, width)),)) for n in range(number)]


def test_every_picture_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    source = ImageDataset(documents(6), 16)

    def epoch(number: int, seed: int = 0) -> list[int]:
        return [
            n for step in range(3) for n in source.batch(3 * number + step, 2, seed).image_indices
        ]

    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(6))
    assert epoch(0) != epoch(1)
    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(0, seed=1)


def test_a_picture_is_prepared_as_the_finished_tokenizer_prepares_it() -> None:
    source = ImageDataset(documents(3, width=24), 16)
    batch = source.batch(0, 3, 0)
    for pixels, number in zip(batch.pixels, batch.image_indices, strict=True):
        assert torch.equal(pixels, image_to_pixels(source.images[number].open(), 16))


def test_pictures_that_are_kept_are_those_that_are_read() -> None:
    source = ImageDataset(documents(), 16)
    first = source.batch(0, 5, 0).pixels
    assert len(source._kept) == 5
    assert torch.equal(source.batch(0, 5, 0).pixels, first)
    source._room = 0
    source._kept.clear()
    assert torch.equal(source.batch(0, 5, 0).pixels, first)
    assert source._kept == {}


def test_pictures_with_faces_may_come_twice_an_epoch() -> None:
    source = ImageDataset(documents(3), 16)
    source.oversample([1], 2)
    drawn = source.batch(0, 4, 0).image_indices
    assert sorted(drawn) == [0, 1, 1, 2]


def test_ranks_share_a_batch_in_their_order() -> None:
    source = ImageDataset(documents(6), 16, AugmentConfig(min_crop_scale=0.5, horizontal_flip=True))
    whole = source.batch(1, 4, seed=3)
    parts = [source.batch(1, 4, 3, DistContext(rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
    assert parts[0].crops + parts[1].crops == whole.crops


def test_cuts_are_drawn_anew_each_time_and_alike_for_the_same_draw() -> None:
    source = ImageDataset(
        documents(1, width=40), 8, AugmentConfig(min_crop_scale=0.4, horizontal_flip=True)
    )
    views = [source.batch(step, 1, 0).crops[0] for step in range(8)]
    assert len(set(views)) == 8 and {view.flipped for view in views} == {True, False}
    again = ImageDataset(
        documents(1, width=40), 8, AugmentConfig(min_crop_scale=0.4, horizontal_flip=True)
    )
    assert torch.equal(again.batch(5, 1, 0).pixels, source.batch(5, 1, 0).pixels)
    for view in views:
        # squares of 0.4 to 1 of the height of 16, inside the 40 x 16 of the picture
        assert view.width * 40 == pytest.approx(view.height * 16)
        assert 0.4 <= view.height <= 1.0
        assert view.left >= 0.0 and view.left + view.width <= 1.0
        assert view.top >= 0.0 and view.top + view.height <= 1.0


def test_a_cut_shows_what_its_view_says() -> None:
    """On a picture whose red grows from left to right, and green from top to bottom."""
    steps = np.arange(256, dtype=np.uint8)
    values = np.zeros((256, 256, 3), np.uint8)
    values[:, :, 0], values[:, :, 1] = steps[None, :], steps[:, None]
    image = _image(PIL.Image.fromarray(values))
    document = Document(id="a", content=(image,))
    source = ImageDataset([document], 32, AugmentConfig(min_crop_scale=0.3, horizontal_flip=True))
    for step in range(6):
        batch = source.batch(step, 1, 0)
        view, (red, green, _) = batch.crops[0], batch.pixels[0] / 2 + 0.5
        middle = view.left + view.width / 2, view.top + view.height / 2
        assert (float(red.mean()), float(green.mean())) == pytest.approx(middle, abs=0.01)
        assert (red[:, 0].mean() > red[:, -1].mean()) == view.flipped


def _image(picture: PIL.Image.Image) -> Image:
    import io

    file = io.BytesIO()
    picture.save(file, "PNG")
    return Image(data=file.getvalue())


def test_a_box_is_seen_where_the_view_shows_it() -> None:
    view = Crop(0.5, 0.0, 0.5, 1.0, flipped=False)
    assert view.project_box((0.5, 0.25, 0.75, 0.5)) == (0.0, 0.25, 0.5, 0.5)
    assert view.project_box((0.0, 0.0, 0.4, 1.0)) is None
    assert view.project_box((0.4, 0.0, 1.0, 1.0)) == (0.0, 0.0, 1.0, 1.0)
    mirrored = Crop(0.5, 0.0, 0.5, 1.0, flipped=True)
    assert mirrored.project_box((0.5, 0.25, 0.75, 0.5)) == (0.5, 0.25, 1.0, 0.5)


def test_other_pictures_have_another_fingerprint() -> None:
    assert ImageDataset(documents(2), 16).fingerprint == ImageDataset(documents(2), 32).fingerprint
    assert ImageDataset(documents(2), 16).fingerprint != ImageDataset(documents(3), 16).fingerprint


def test_documents_without_pictures_are_refused() -> None:
    with pytest.raises(DocumentError) as caught:
        ImageDataset([Document(id="a", content=(Text("words"),))], 16)
    assert str(caught.value) == (
        "the documents hold no picture; expected at least one to train an image tokenizer on. "
        "Name files whose documents have image parts."
    )
