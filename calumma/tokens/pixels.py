"""Images <-> pixel tensors: float32, RGB, from -1 (black) to 1 (white).

Shapes: R resolution, H and W pixels.
"""

from __future__ import annotations

import PIL.Image
import torch
from torch import Tensor

from calumma.tokens.image_preprocessing import ResizeMode, image_to_array


def image_to_pixels(
    image: PIL.Image.Image, resolution: int, resize_mode: ResizeMode = "crop"
) -> Tensor:
    """Convert an image of any mode and size to [3, R, R] float32 in [-1, 1].

    Raises:
        ImageError: as `image_to_array`.
    """
    return normalize_pixels(torch.from_numpy(image_to_array(image, resolution, resize_mode)))


def normalize_pixels(values: Tensor) -> Tensor:
    """Convert uint8 values of any shape to float32 in [-1, 1]: x / 255 * 2 - 1.

    >>> normalize_pixels(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    return values.to(torch.float32) / 255.0 * 2.0 - 1.0


def pixels_to_image(pixels: Tensor) -> PIL.Image.Image:
    """Convert [3, H, W] pixels to an image; values are clamped to [-1, 1] and truncated."""
    unit = (pixels.detach().to("cpu", torch.float32).clamp(-1.0, 1.0) + 1.0) / 2.0
    values = (unit * 255.0).to(torch.uint8)
    return PIL.Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
