"""Region losses, with networks small enough to compute by hand."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from torch import Tensor, nn

from calumma.documents.document import Document, Image
from calumma.errors import DocumentError
from calumma.tokens.face_detection import FaceBox
from calumma.tokens.vq.losses import FeaturePerceptualLoss
from calumma.train import region_losses
from calumma.train.config_image_tokenizer import RegionConfig
from calumma.train.distributed import SINGLE_PROCESS
from calumma.train.image_dataset import Crop, ImageBatch, ImageDataset
from calumma.train.region_losses import (
    ImageRegions,
    RegionLoss,
    build_region_losses,
    crop_regions,
    detect_boxes,
    detect_regions,
    parse_boxes,
    salient_object,
)
from tests.images import png


class Doubled(nn.Module):
    """A network of two feature maps: the pixels, and twice the pixels."""

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [pixels, 2 * pixels]


def test_regions_are_cropped() -> None:
    pixels = torch.arange(64.0).view(1, 1, 8, 8).expand(2, 3, 8, 8)
    cut = crop_regions(pixels, torch.tensor([[1.0, 0.25, 0.5, 0.75, 1.0]]), 4)
    assert cut.shape == (1, 3, 4, 4)
    assert torch.allclose(cut[0, 0], pixels[1, 0, 4:8, 2:6])


def test_the_loss_of_a_region_is_the_relative_difference_of_its_features() -> None:
    loss = RegionLoss(FeaturePerceptualLoss(Doubled()), 4)
    pixels, made = torch.full((2, 3, 8, 8), 0.5), torch.full((2, 3, 8, 8), 0.5)
    made[1, :, :, 4:] = 0.75
    regions = torch.tensor([[1.0, 0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0, 1.0]])
    # the first region differs by 0.25 of 0.5 in both maps, the second not; over two images
    assert loss(made, pixels, regions).item() == pytest.approx((0.5 + 0.5) / 2, rel=1e-4)
    assert loss(made, pixels, torch.zeros(0, 5)).item() == 0.0


def test_only_the_region_has_a_gradient() -> None:
    loss = RegionLoss(FeaturePerceptualLoss(Doubled()), 4)
    made = torch.zeros(1, 3, 8, 8, requires_grad=True)
    loss(made, torch.ones(1, 3, 8, 8), torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.5]])).backward()
    assert made.grad is not None
    assert bool(made.grad[0, :, :4, :4].abs().min() > 0)
    assert float(made.grad[0, :, 5:].abs().sum() + made.grad[0, :, :, 5:].abs().sum()) == 0.0


def test_boxes_are_projected_into_the_crops() -> None:
    regions = ImageRegions({"faces": [[], [(0.5, 0.0, 1.0, 1.0)]]})
    crops = [Crop(0.0, 0.0, 1.0, 1.0, False), Crop(0.5, 0.0, 0.5, 1.0, True)]
    batch = ImageBatch(torch.zeros(2, 3, 8, 8), [0, 1], crops)
    assert regions.of(batch)["faces"].tolist() == [[1.0, 0.0, 0.0, 1.0, 1.0]]
    assert regions.images_with("faces") == [1] and regions.images_with("objects") == []
    assert regions.of(ImageBatch(batch.pixels[:1], [0], crops[:1]))["faces"].shape == (0, 5)


def test_images_with_faces_are_oversampled(tmp_path: Path) -> None:
    documents = [
        Document(id=str(n), content=(Image(data=png(n)),), attributes=attributes)
        for n, attributes in enumerate([{}, {"faces": "0 0 1 1"}, {}])
    ]
    dataset = ImageDataset(documents, 16)
    config = RegionConfig(faces="given", objects="saliency")
    regions = detect_regions(config, dataset, tmp_path, SINGLE_PROCESS)
    assert regions is not None
    assert (tmp_path / "boxes.json").is_file()
    assert sorted(dataset.batch(0, 4, 0).image_indices) == [0, 1, 1, 2]
    assert detect_regions(RegionConfig(), dataset, tmp_path, SINGLE_PROCESS) is None


def test_the_configured_losses_are_built() -> None:
    assert build_region_losses(RegionConfig()) == {}
    found = build_region_losses(RegionConfig(objects="saliency", crop_size=32))
    assert list(found) == ["objects"] and found["objects"].crop_size == 32


def test_a_salient_object_is_boxed() -> None:
    image = PIL.Image.new("RGB", (128, 128), (120, 130, 140))
    PIL.ImageDraw.Draw(image).ellipse((16, 80, 48, 104), fill=(220, 40, 40))
    ((left, top, right, bottom),) = salient_object(image)
    found, expected = np.array([left, top, right, bottom]), np.array([16, 80, 48, 104]) / 128
    assert np.abs(found - expected).max() < 0.03


def test_a_plain_image_has_no_salient_object() -> None:
    assert salient_object(PIL.Image.new("RGB", (40, 30), "red")) == []


REFUSALS = ("0.1 0.2 0.3", "0.5 0.5 0.4 0.6", "0 0 1 2", "a b c d")


@pytest.mark.parametrize("text", REFUSALS)
def test_malformed_boxes_are_refused(text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_boxes(text, "image 3, attribute faces")
    assert str(caught.value) == (
        f"image 3, attribute faces: found the box {text!r}; expected left, top, right and bottom "
        'in fractions of width and height, such as "0.1 0.2 0.5 0.6; 0 0 1 1". Fix the attribute.'
    )


def dataset(number: int = 4) -> ImageDataset:
    attributes = {"faces": "0 0 0.5 0.5"}
    images = [(Image(data=png(n)),) for n in range(number)]
    return ImageDataset([Document(id=str(n), content=i, attributes=attributes) for n, i in enumerate(images)], 16)


def test_boxes_are_detected_once_and_an_interrupted_search_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_losses, "_SAVE_INTERVAL", 2)
    calls: list[int] = []

    def find(image: PIL.Image.Image) -> list[FaceBox]:
        calls.append(len(calls))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return [(0.0, 0.0, 1.0, 0.5)]

    with pytest.raises(KeyboardInterrupt):
        detect_boxes(dataset(), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    found = detect_boxes(dataset(), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    # four before the stop, of which two were saved; then the two that were missing
    assert len(calls) == 6
    assert len(found["objects"]) == len(found["faces"]) == 4
    again = detect_boxes(dataset(), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    assert len(calls) == 6
    assert [[list(b) for b in one] for one in again["faces"]] == [[[0.0, 0.0, 0.5, 0.5]]] * 4
    detect_boxes(dataset(3), {"objects": find, "faces": None}, tmp_path / "boxes.json")
    assert len(calls) == 9
