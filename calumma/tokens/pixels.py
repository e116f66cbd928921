"""Pictures <-> pixels, exactly as the release prepares them.

Shapes: R resolution, H and W pixels. "Pixels" are float32 tensors, RGB, from -1 (black) to 1.
"""

from __future__ import annotations

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from calumma.tokens.image_preprocessing import ResizeMode, to_rgb, to_square


def image_to_pixels(picture: PIL.Image.Image, resolution: int, fit: ResizeMode = "crop") -> Tensor:
    """A picture of any mode and size -> [3, R, R] float32 in [-1, 1].

    Raises:
        ImageError: the picture is a mere line, or `fit` is neither "crop" nor "pad".
    """
    return normalize_pixels(torch.from_numpy(image_to_array(picture, resolution, fit)))


def image_to_array(
    picture: PIL.Image.Image, resolution: int, fit: ResizeMode = "crop"
) -> np.ndarray:
    """A picture of any mode and size -> [3, R, R] uint8, a quarter the size of its pixels.

    Raises:
        ImageError: as `to_pixels`.
    """
    square = to_square(to_rgb(picture), resolution, fit)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def normalize_pixels(values: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], of any shape: x / 255 * 2 - 1.

    >>> scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    return values.to(torch.float32) / 255.0 * 2.0 - 1.0


def pixels_to_image(pixels: Tensor) -> PIL.Image.Image:
    """[3, H, W] -> a picture; what lies outside [-1, 1] is clamped, fractions are cut off."""
    unit = (pixels.detach().to("cpu", torch.float32).clamp(-1.0, 1.0) + 1.0) / 2.0
    values = (unit * 255.0).to(torch.uint8)
    return PIL.Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
