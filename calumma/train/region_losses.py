"""The two losses of Make-A-Scene: faces and salient objects are to keep their features.

Source: arXiv:2203.13131, section 3: a frozen network's features of a crop of what was made and of
the original, matched at several sizes. Shapes: B images, R pixels to a side, M regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calumma.tokens.face_detection import FaceBox, FaceDetector, haar_face_detector
from calumma.tokens.vq.perceptual import FeaturePerceptualLoss, feature_perceptual_loss
from calumma.train.config_image_tokenizer import RegionConfig
from calumma.train.distributed import DistContext
from calumma.train.image_dataset import ImageBatch, ImageDataset
from calumma.train.region_detection import detect_boxes, salient_object

BOXES_NAME = "boxes.json"


class RegionLoss(nn.Module):
    """How unlike the features of regions are."""

    def __init__(self, distance: FeaturePerceptualLoss, side: int) -> None:
        super().__init__()
        self.distance = distance
        self.side = side

    def forward(self, made: Tensor, pixels: Tensor, regions: Tensor) -> Tensor:
        """The differences of all regions, over the number of images.

        Args:
            made: [B, 3, R, R], with a gradient.
            pixels: [B, 3, R, R], the originals.
            regions: [M, 5] float32: image, then left, top, right, bottom as shares of its sides.

        Returns:
            The sum over regions and feature maps of the mean absolute difference, each map's as
            a share of the original's mean magnitude: no map counts for more because its numbers
            are larger.
        """
        if not len(regions):
            return made.new_zeros(())
        with torch.no_grad():
            aims = self.distance.features(crop_regions(pixels, regions, self.side))
        found = self.distance.features(crop_regions(made, regions, self.side))
        total = made.new_zeros(())
        for one, aim in zip(found, aims, strict=True):
            apart, size = (one - aim).abs().flatten(1).mean(1), aim.abs().flatten(1).mean(1)
            total = total + (apart / (size + 1e-6)).sum()
        return total / len(made)


def crop_regions(pixels: Tensor, regions: Tensor, side: int) -> Tensor:
    """[B, 3, R, R], [M, 5] -> [M, 3, side, side], what is in each region, stretched to a square."""
    images, boxes = regions[:, 0].long(), regions[:, 1:] * 2.0 - 1.0
    low, high = boxes[:, :2], boxes[:, 2:]
    places = torch.cat([torch.diag_embed((high - low) / 2), (high + low)[:, :, None] / 2], 2)
    grid = F.affine_grid(places, [len(regions), 3, side, side], align_corners=False)
    return F.grid_sample(pixels[images], grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class ImageRegions:
    """The boxes of all pictures of a run."""

    boxes: dict[str, list[list[FaceBox]]]

    def of(self, batch: ImageBatch) -> dict[str, Tensor]:
        """The regions, [M, 5], of the pictures of a batch as they are seen in it."""
        found = {}
        shown = list(enumerate(zip(batch.image_indices, batch.crops, strict=True)))
        for kind, boxes in self.boxes.items():
            rows = [
                [float(image), *box]
                for image, (number, view) in shown
                for box in map(view.project_box, boxes[number])
                if box is not None
            ]
            found[kind] = torch.tensor(rows).reshape(-1, 5)
        return found

    def images_with(self, kind: str) -> Sequence[int]:
        """The numbers of the pictures that have such a box."""
        return [number for number, boxes in enumerate(self.boxes.get(kind, [])) if boxes]


def build_region_losses(config: RegionConfig) -> dict[str, RegionLoss]:
    """The losses that a config asks for, by kind."""
    networks = {"faces": config.face_network, "objects": config.object_network}
    return {
        kind: RegionLoss(feature_perceptual_loss(networks[kind]), config.crop_size)
        for kind in config.weights
    }


def detect_regions(
    config: RegionConfig, pictures: ImageDataset, run: Path, world: DistContext
) -> ImageRegions | None:
    """Find what the config asks for, once for a run; the first rank looks, all read.

    Raises:
        ConfigError: OpenCV is asked for and not installed.
        DocumentError: boxes are given, but not as boxes.
    """
    finders: dict[str, FaceDetector | None] = {}
    if config.faces != "none":
        finders["faces"] = haar_face_detector() if config.faces == "haar" else None
    if config.objects != "none":
        finders["objects"] = salient_object if config.objects == "saliency" else None
    if not finders:
        return None
    if world.is_main:
        detect_boxes(pictures, finders, run / BOXES_NAME)
    world.barrier()
    regions = ImageRegions(detect_boxes(pictures, finders, run / BOXES_NAME))
    pictures.oversample(regions.images_with("faces"), config.face_oversampling)
    return regions
