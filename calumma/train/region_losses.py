"""Feature-matching losses on faces and salient objects.

Source: Make-A-Scene (arXiv:2203.13131), section 3: features of a frozen network of crops of
reconstruction and original, at several scales. Shapes: B images, R resolution, M regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calumma.tokens.face_detection import FaceBox, FaceDetector, haar_face_detector
from calumma.tokens.vq.losses import FeaturePerceptualLoss, feature_perceptual_loss
from calumma.train.config_image_tokenizer import RegionConfig
from calumma.train.distributed import DistContext
from calumma.train.image_dataset import ImageBatch, ImageDataset
from calumma.train.region_detection import detect_boxes, salient_object

BOXES_NAME = "boxes.json"


class RegionLoss(nn.Module):
    """Feature distance of regions of reconstruction and original."""

    def __init__(self, network: FeaturePerceptualLoss, crop_size: int) -> None:
        super().__init__()
        self.network = network
        self.crop_size = crop_size

    def forward(self, output: Tensor, pixels: Tensor, regions: Tensor) -> Tensor:
        """Return the sum of the distances of all regions over the number of images.

        Args:
            output: [B, 3, R, R] reconstructions, with gradient.
            pixels: [B, 3, R, R] originals.
            regions: [M, 5] float32: index in the batch, then left, top, right, bottom in fractions
                of the image.

        Returns:
            Scalar: the sum over regions and feature maps of the mean absolute difference over the
            mean magnitude of the original's map, so that no map dominates by its scale.
        """
        if not len(regions):
            return output.new_zeros(())
        with torch.no_grad():
            targets = self.network.features(crop_regions(pixels, regions, self.crop_size))
        features = self.network.features(crop_regions(output, regions, self.crop_size))
        total = output.new_zeros(())
        for feature, target in zip(features, targets, strict=True):
            difference = (feature - target).abs().flatten(1).mean(1)
            total = total + (difference / (target.abs().flatten(1).mean(1) + 1e-6)).sum()
        return total / len(output)


def crop_regions(pixels: Tensor, regions: Tensor, crop_size: int) -> Tensor:
    """Crop regions [M, 5] out of [B, 3, R, R] and resize them to [M, 3, crop_size, crop_size]."""
    images, boxes = regions[:, 0].long(), regions[:, 1:] * 2.0 - 1.0
    low, high = boxes[:, :2], boxes[:, 2:]
    affine = torch.cat([torch.diag_embed((high - low) / 2), (high + low)[:, :, None] / 2], 2)
    grid = F.affine_grid(affine, [len(regions), 3, crop_size, crop_size], align_corners=False)
    return F.grid_sample(pixels[images], grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class ImageRegions:
    """The detected boxes of all images of a run, by kind."""

    boxes: dict[str, list[list[FaceBox]]]

    def of(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Return the regions [M, 5] of each kind in the crops of a batch."""
        regions = {}
        crops = list(enumerate(zip(batch.image_indices, batch.crops, strict=True)))
        for kind, boxes in self.boxes.items():
            rows = [
                [float(row), *box]
                for row, (index, crop) in crops
                for box in map(crop.project_box, boxes[index])
                if box is not None
            ]
            regions[kind] = torch.tensor(rows).reshape(-1, 5)
        return regions

    def images_with(self, kind: str) -> Sequence[int]:
        """Return the indices of the images with a box of a kind."""
        return [index for index, boxes in enumerate(self.boxes.get(kind, [])) if boxes]


def build_region_losses(config: RegionConfig) -> dict[str, RegionLoss]:
    """Build the configured losses, by kind."""
    networks = {"faces": config.face_network, "objects": config.object_network}
    return {kind: RegionLoss(feature_perceptual_loss(networks[kind]), config.crop_size) for kind in config.weights}


def detect_regions(config: RegionConfig, dataset: ImageDataset, run: Path, dist: DistContext) -> ImageRegions | None:
    """Detect the configured regions on rank 0, once per run, and oversample images with faces.

    Raises:
        ConfigError: OpenCV is needed and not installed.
        DocumentError: an attribute is not a list of boxes.
    """
    detectors: dict[str, FaceDetector | None] = {}
    if config.faces != "none":
        detectors["faces"] = haar_face_detector() if config.faces == "haar" else None
    if config.objects != "none":
        detectors["objects"] = salient_object if config.objects == "saliency" else None
    if not detectors:
        return None
    path = run / BOXES_NAME
    if dist.is_main:
        detect_boxes(dataset, detectors, path)
    dist.barrier()
    regions = ImageRegions(detect_boxes(dataset, detectors, path))
    dataset.oversample(regions.images_with("faces"), config.face_oversampling)
    return regions
