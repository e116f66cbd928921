"""The release's way from an image to pixels once more, slowly and with nothing of Pillow in it.

Pillow resizes in two passes with weights in fixed point of 22 bits and integers between the
passes; so does this. Across comes first, but newer versions (13) go down first where that is less
work, which changes a value in ten by a step or two: here it is the caller who says.
"""

import math

import numpy as np

_BITS = 22
_LOBES = 3.0


def _lanczos(x: float) -> float:
    if x == 0.0:
        return 1.0
    if abs(x) >= _LOBES:
        return 0.0
    return math.sin(math.pi * x) / (math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x / 3)


def _resized_across(values: np.ndarray, width: int) -> np.ndarray:
    """[H, W, C] uint8 -> [H, width, C] uint8."""
    before = values.shape[1]
    step = before / width
    stretch = max(1.0, step)
    columns = []
    for column in range(width):
        center = (column + 0.5) * step
        first = max(0, int(center - _LOBES * stretch + 0.5))
        last = min(before, int(center + _LOBES * stretch + 0.5))
        weights = [_lanczos((x - center + 0.5) / stretch) for x in range(first, last)]
        weights_fixed = [math.floor(w / sum(weights) * 2**_BITS + 0.5) for w in weights]
        total = sum(
            values[:, x].astype(np.int64) * weight for x, weight in zip(range(first, last), weights_fixed, strict=True)
        )
        columns.append(((total + (1 << (_BITS - 1))) >> _BITS).clip(0, 255))
    return np.stack(columns, axis=1).astype(np.uint8)


def on_white(values: np.ndarray) -> np.ndarray:
    """[H, W, 4] uint8 -> [H, W, 3] uint8, fractions cut off."""
    rgb = np.empty((*values.shape[:2], 3), np.uint8)
    for y, x in np.ndindex(values.shape[:2]):
        alpha = int(values[y, x, 3]) / 255
        for channel in range(3):
            rgb[y, x, channel] = int((1 - alpha) * 255.0 + alpha * int(values[y, x, channel]))
    return rgb


def resized(values: np.ndarray, width: int, height: int, *, down_first: bool) -> np.ndarray:
    """[H, W, 3] uint8 -> [height, width, 3] uint8; a side that stays is left alone."""
    if down_first:
        turned = values.transpose(1, 0, 2)
        return resized(turned, height, width, down_first=False).transpose(1, 0, 2)
    across = values if width == values.shape[1] else _resized_across(values, width)
    if height == across.shape[0]:
        return across
    return _resized_across(across.transpose(1, 0, 2), height).transpose(1, 0, 2)


def cropped(values: np.ndarray, resolution: int, *, down_first: bool) -> np.ndarray:
    """[H, W, 3] uint8 -> [3, R, R] from -1 to 1: shorter side to R, the middle cut out."""
    height, width = values.shape[:2]
    scale = resolution / min(height, width)
    size = round(scale * width), round(scale * height)
    small = resized(values, *size, down_first=down_first)
    top, left = (small.shape[0] - resolution) // 2, (small.shape[1] - resolution) // 2
    return _scaled(small[top : top + resolution, left : left + resolution])


def padded(values: np.ndarray, resolution: int, *, down_first: bool) -> np.ndarray:
    """[H, W, 3] uint8 -> [3, R, R] from -1 to 1: longer side to R, white on both sides."""
    height, width = values.shape[:2]
    scale = resolution / max(height, width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = resized(values, *size, down_first=down_first)
    square = np.full((resolution, resolution, 3), 255, np.uint8)
    top, left = (resolution - small.shape[0]) // 2, (resolution - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return _scaled(square)


def _scaled(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float64) * 2 / 255 - 1).transpose(2, 0, 1)
