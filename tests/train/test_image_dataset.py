"""Image batches: shuffled epochs, random crops, ranks."""

import numpy as np
import PIL.Image
import pytest
import torch

from calumma.documents.document import Document, Image, Text
from calumma.documents.error_policy import DroppedDocument
from calumma.errors import DocumentError
from calumma.tokens.image import image_to_pixels
from calumma.train.config_image_tokenizer import AugmentConfig
from calumma.train.distributed import DistContext
from calumma.train.image_dataset import Crop, ImageDataset, drop_unreadable
from tests.images import png


def documents(number: int = 5, width: int = 16) -> list[Document]:
    return [Document(id=str(n), content=(Image(data=png(n, width)),)) for n in range(number)]


def test_documents_with_unreadable_images_are_dropped_by_name() -> None:
    unparsed = DroppedDocument(id="", source="", reason="unreadable", detail="a line")
    broken = Document(id="b", source="s", content=(Image(data=png(1)), Image(data=b"no image", name="b.png")))
    thin = Document(id="t", content=(Image(data=png(1, 4096), name="t.png"),))
    dropped: list[DroppedDocument] = []
    kept = list(drop_unreadable([unparsed, *documents(2), broken, thin], 8, dropped))
    assert [document.id for document in kept] == ["0", "1"]
    assert [(drop.id, drop.source) for drop in dropped] == [("", ""), ("b", "s"), ("t", "")]
    assert dropped[1].detail.startswith("b.png: not an image")
    assert dropped[2].detail.startswith("t.png: an image of 4096 x ")


def test_every_image_occurs_once_per_epoch_in_another_order() -> None:
    dataset = ImageDataset(documents(6), 16)

    def epoch(number: int, seed: int = 0) -> list[int]:
        return [n for step in range(3) for n in dataset.batch(3 * number + step, 2, seed).image_indices]

    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(6))
    assert epoch(0) != epoch(1)
    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(0, seed=1)


def test_without_augmentation_images_are_prepared_as_for_inference() -> None:
    dataset = ImageDataset(documents(3, width=24), 16)
    batch = dataset.batch(0, 3, 0)
    for pixels, number in zip(batch.pixels, batch.image_indices, strict=True):
        assert torch.equal(pixels, image_to_pixels(dataset.images[number].open(), 16))


def test_cached_images_are_those_that_are_decoded() -> None:
    dataset = ImageDataset(documents(), 16)
    first = dataset.batch(0, 5, 0).pixels
    assert len(dataset._cache) == 5
    assert torch.equal(dataset.batch(0, 5, 0).pixels, first)
    dataset._cache_space = 0
    dataset._cache.clear()
    assert torch.equal(dataset.batch(0, 5, 0).pixels, first)
    assert dataset._cache == {}


def test_images_may_be_oversampled() -> None:
    dataset = ImageDataset(documents(3), 16)
    dataset.oversample([1], 2)
    indices = dataset.batch(0, 4, 0).image_indices
    assert sorted(indices) == [0, 1, 1, 2]


def test_ranks_share_a_batch() -> None:
    dataset = ImageDataset(documents(6), 16, AugmentConfig(min_crop_scale=0.5, horizontal_flip=True))
    full = dataset.batch(1, 4, seed=3)
    parts = [dataset.batch(1, 4, 3, DistContext(rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat([part.pixels for part in parts]), full.pixels)
    assert parts[0].crops + parts[1].crops == full.crops


def test_crops_differ_and_are_repeated_for_the_same_draw() -> None:
    dataset = ImageDataset(documents(1, width=40), 8, AugmentConfig(min_crop_scale=0.4, horizontal_flip=True))
    crops = [dataset.batch(step, 1, 0).crops[0] for step in range(8)]
    assert len(set(crops)) == 8 and {crop.flipped for crop in crops} == {True, False}
    again = ImageDataset(documents(1, width=40), 8, AugmentConfig(min_crop_scale=0.4, horizontal_flip=True))
    assert torch.equal(again.batch(5, 1, 0).pixels, dataset.batch(5, 1, 0).pixels)
    for crop in crops:
        # squares of 0.4 to 1 times the height of 16, inside the image of 40 x 16
        assert crop.width * 40 == pytest.approx(crop.height * 16)
        assert 0.4 <= crop.height <= 1.0
        assert crop.left >= 0.0 and crop.left + crop.width <= 1.0
        assert crop.top >= 0.0 and crop.top + crop.height <= 1.0


def test_pixels_are_those_of_the_crop() -> None:
    """The image gets redder from left to right, and greener from top to bottom."""
    steps = np.arange(256, dtype=np.uint8)
    values = np.zeros((256, 256, 3), np.uint8)
    values[:, :, 0], values[:, :, 1] = steps[None, :], steps[:, None]
    image = _image(PIL.Image.fromarray(values))
    document = Document(id="a", content=(image,))
    dataset = ImageDataset([document], 32, AugmentConfig(min_crop_scale=0.3, horizontal_flip=True))
    for step in range(6):
        batch = dataset.batch(step, 1, 0)
        crop, (red, green, _) = batch.crops[0], batch.pixels[0] / 2 + 0.5
        center = crop.left + crop.width / 2, crop.top + crop.height / 2
        assert (float(red.mean()), float(green.mean())) == pytest.approx(center, abs=0.01)
        assert (red[:, 0].mean() > red[:, -1].mean()) == crop.flipped


def _image(image: PIL.Image.Image) -> Image:
    import io

    file = io.BytesIO()
    image.save(file, "PNG")
    return Image(data=file.getvalue())


def test_a_box_is_projected_into_the_crop() -> None:
    crop = Crop(0.5, 0.0, 0.5, 1.0, flipped=False)
    assert crop.project_box((0.5, 0.25, 0.75, 0.5)) == (0.0, 0.25, 0.5, 0.5)
    assert crop.project_box((0.0, 0.0, 0.4, 1.0)) is None
    assert crop.project_box((0.4, 0.0, 1.0, 1.0)) == (0.0, 0.0, 1.0, 1.0)
    flipped = Crop(0.5, 0.0, 0.5, 1.0, flipped=True)
    assert flipped.project_box((0.5, 0.25, 0.75, 0.5)) == (0.5, 0.25, 1.0, 0.5)


def test_other_images_have_another_fingerprint() -> None:
    assert ImageDataset(documents(2), 16).fingerprint == ImageDataset(documents(2), 32).fingerprint
    assert ImageDataset(documents(2), 16).fingerprint != ImageDataset(documents(3), 16).fingerprint


def test_documents_without_images_are_refused() -> None:
    with pytest.raises(DocumentError) as caught:
        ImageDataset([Document(id="a", content=(Text("words"),))], 16)
    assert str(caught.value) == (
        "the documents have no images; expected at least one to train an image tokenizer. Name "
        "files whose documents have image parts."
    )
