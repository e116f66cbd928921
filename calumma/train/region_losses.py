"""Feature-matching losses on faces and salient objects, which are detected before the first step.

Nothing is downloaded: faces are found by the Haar cascade in OpenCV's package, salient objects by
a method without weights; both may also be given as attributes of the documents.

Source: Make-A-Scene (arXiv:2203.13131), section 3: features of a frozen network of crops of
reconstruction and original, at several scales. Shapes: B images, R resolution, M regions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from calumma.errors import DocumentError
from calumma.files import read_json, write_json
from calumma.tokens.face_detection import FaceBox, FaceDetector, haar_face_detector
from calumma.tokens.image_preprocessing import to_rgb
from calumma.tokens.vq.losses import FeaturePerceptualLoss, feature_perceptual_loss
from calumma.train.config_image_tokenizer import RegionConfig
from calumma.train.distributed import DistContext
from calumma.train.image_dataset import ImageBatch, ImageDataset

BOXES_NAME = "boxes.json"

_SALIENCY_SIDE = 64
_SALIENCY_FACTOR = 3.0
"""Multiple of the mean saliency from which a pixel is salient."""

_SAVE_INTERVAL = 500


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


def salient_object(image: PIL.Image.Image) -> list[FaceBox]:
    """Return the box of the salient pixels; no box if there are none.

    Source: the spectral residual (Hou and Zhang, 2007), the log spectrum minus its local mean,
    transformed back. A tenth of the salient mass may be outside the box on each side, or single
    pixels would stretch it.
    """
    shape = (_SALIENCY_SIDE, _SALIENCY_SIDE)
    gray = np.asarray(image.convert("L").resize(shape), np.float64) / 255.0
    if gray.max() - gray.min() < 1e-3:
        return []
    spectrum = np.fft.fft2(gray)
    log_spectrum = np.log(np.abs(spectrum) + 1e-9)
    residual = log_spectrum - _box_blur(log_spectrum, 1)
    saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    saliency = _box_blur(saliency, 3)
    mass = np.where(saliency > _SALIENCY_FACTOR * saliency.mean(), saliency, 0.0)
    if not mass.any():
        return []
    (left, right), (top, bottom) = _middle_mass(mass.sum(0)), _middle_mass(mass.sum(1))
    return [(left, top, right, bottom)]


def _box_blur(values: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    for axis in (0, 1):
        shifted = [np.roll(values, step, axis) for step in range(-radius, radius + 1)]
        values = np.mean(shifted, axis=0)
    return values


def _middle_mass(profile: NDArray[np.float64]) -> tuple[float, float]:
    """Return the start and end of the middle 80 % of the mass, in fractions of the length."""
    cumulative = np.cumsum(profile) / profile.sum()
    first, last = (int(np.searchsorted(cumulative, share)) for share in (0.1, 0.9))
    return first / len(profile), (last + 1) / len(profile)


def parse_boxes(text: str, where: str) -> list[FaceBox]:
    """Parse the boxes of a document's attribute.

    >>> parse_boxes("0.1 0.2 0.5 0.6; 0 0 1 1", "here")
    [(0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0)]

    Raises:
        DocumentError: it is not a list of boxes.
    """
    boxes = []
    for part in filter(None, map(str.strip, text.split(";"))):
        try:
            left, top, right, bottom = map(float, part.split())
        except ValueError:
            left = right = top = bottom = 0.0
        if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0):
            raise DocumentError(
                f"{where}: found the box {part!r}; expected left, top, right and bottom in fractions "
                'of width and height, such as "0.1 0.2 0.5 0.6; 0 0 1 1". Fix the attribute.'
            )
        boxes.append((left, top, right, bottom))
    return boxes


def detect_boxes(
    dataset: ImageDataset, detectors: Mapping[str, FaceDetector | None], path: Path
) -> dict[str, list[list[FaceBox]]]:
    """Return the boxes of every image, by kind.

    Args:
        dataset: the images.
        detectors: the detector of each kind; None reads the attribute of that name.
        path: file of the results, from which an interrupted search resumes.

    Raises:
        DocumentError: an attribute is not a list of boxes.
        ImageError: an image cannot be read.
    """
    results = _saved_results(path, dataset, list(detectors))
    found: dict[str, list[list[FaceBox]]] = results["boxes"]
    total = len(dataset.images)
    for index in range(len(found[next(iter(detectors))]), total):
        image = None
        for kind, detector in detectors.items():
            if detector is None:
                text = dataset.attributes[index].get(kind, "")
                boxes = parse_boxes(text, f"image {index}, attribute {kind}")
            else:
                image = image or to_rgb(dataset.images[index].open())
                boxes = detector(image)
            found[kind].append(boxes)
        if (index + 1) % _SAVE_INTERVAL == 0 or index + 1 == total:
            write_json(path, results)
    return found


def _saved_results(path: Path, dataset: ImageDataset, kinds: Sequence[str]) -> dict[str, Any]:
    """Return the results in the file if they are of these images and kinds, else empty ones."""
    empty = {"images": dataset.fingerprint, "boxes": {kind: [] for kind in kinds}}
    if not path.is_file():
        return empty
    saved: dict[str, Any] = read_json(path)
    matches = saved.get("images") == empty["images"] and list(saved["boxes"]) == list(kinds)
    return saved if matches else empty
