"""Image preprocessing: an image of any mode and size -> an upright RGB square, as in the release.

Pillow and numpy only: programs that just look at images need not load torch. `pixels` has the
tensor part.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import PIL.Image
import PIL.ImageCms

from calumma.documents.image_decoding import broken_image_message
from calumma.errors import ImageError
from calumma.vocabulary import Grid

ResizeMode = Literal["crop", "pad"]
"""How an image becomes square: "crop" cuts the longer side, "pad" adds white borders (for images
in prompts)."""

MAX_ASPECT_RATIO = 100
"""Images with a larger ratio of their sides are refused: nothing of them would be left."""

_WHITE = (255, 255, 255)
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112
_EXIF_TRANSPOSE = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""The operation that turns an image upright, by its EXIF orientation."""


def image_to_array(image: PIL.Image.Image, resolution: int, resize_mode: ResizeMode = "crop") -> np.ndarray:
    """Convert an image of any mode and size to a [3, R, R] uint8 array.

    Raises:
        ImageError: as `to_rgb` and `to_square`.
    """
    square = to_square(to_rgb(image), resolution, resize_mode)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def to_grid(image: PIL.Image.Image, grids: Sequence[Grid], cell: int) -> PIL.Image.Image:
    """Crop an RGB image to the most similar of some grids of cells, `cell` pixels a side.

    Raises:
        ImageError: as `crop_to_size`.
    """
    rows, columns = nearest_grid(image.size, grids)
    return crop_to_size(image, columns * cell, rows * cell)


def image_to_grid_array(image: PIL.Image.Image, grids: Sequence[Grid], cell: int) -> np.ndarray:
    """Convert an image to a [3, H, W] uint8 array in the most similar of some grids of cells.

    Args:
        image: of any mode and size; what exceeds the grid is cropped evenly.
        grids: rows and columns.
        cell: pixels of a cell's side.

    Raises:
        ImageError: as `to_rgb` and `crop_to_size`.
    """
    return np.ascontiguousarray(np.asarray(to_grid(to_rgb(image), grids, cell)).transpose(2, 0, 1))


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Put the name of the image before the message of an ImageError."""
    try:
        yield
    except ImageError as error:
        message = f"{name}: {str(error).removeprefix('an image: ')}"
        raise ImageError(message) from error


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn an image upright and convert it to RGB, composited on white if it is transparent.

    The blend is truncated, not rounded, as in the release. It comes before any resizing, so that no
    color hidden under transparency bleeds into the edges.

    Raises:
        ImageError: the image cannot be decoded, or its values have no known range.
    """
    decode = image.load
    try:
        decode()
    except Exception as error:
        raise ImageError(broken_image_message("an image", error)) from error
    image = _apply_exif_orientation(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    rgba = _to_eight_bit(_with_eight_bit_key(image)).convert("RGBA")
    values = np.asarray(rgba)
    if values[:, :, 3].min() == 255:
        return rgba.convert("RGB")
    alpha = values[:, :, 3:] / 255.0
    blended = (1.0 - alpha) * 255.0 + alpha * values[:, :, :3]
    return PIL.Image.fromarray(blended.astype(np.uint8))


def _apply_exif_orientation(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        operation = _EXIF_TRANSPOSE.get(image.getexif().get(_ORIENTATION, 1))
    # Broken EXIF is no reason to refuse the image.
    except Exception:
        return image
    if operation is None:
        return image
    upright = image.transpose(operation)
    upright.info = {name: value for name, value in image.info.items() if name == "transparency"}
    return upright


def _with_eight_bit_key(image: PIL.Image.Image) -> PIL.Image.Image:
    """Halve the bits of an RGB image's transparent color if they are 16, as Pillow halved the pixels'."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _to_eight_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert an image to a mode that Pillow converts to RGBA without clipping."""
    if image.mode in _SIXTEEN_BIT:
        # Pillow's own conversion clips at 255; the high byte holds the image.
        values = np.asarray(image.convert("I"))
        gray = (values >> 8).astype(np.uint8)
        key = image.info.get("transparency")
        if not isinstance(key, int):
            return PIL.Image.fromarray(gray)
        alpha = np.where(values == key, 0, 255).astype(np.uint8)
        return PIL.Image.merge("LA", [PIL.Image.fromarray(gray), PIL.Image.fromarray(alpha)])
    if image.mode in ("I", "F"):
        return _scale_to_eight_bit(np.asarray(image), sixteen_bit=image.format == "PPM")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    return image.convert("LA") if image.mode == "La" else image


def _scale_to_eight_bit(values: np.ndarray, *, sixteen_bit: bool) -> PIL.Image.Image:
    """Convert 32-bit gray values, whose range defines white: 1 (if fractions), 255 or
    65,535."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65_535):
        raise ImageError(
            f"an image of numbers from {low:g} to {high:g}; expected 0 to 1, 0 to 255 or 0 to "
            "65,535. Scale them, or drop its document."
        )
    if high <= 1 and values.dtype.kind == "f":
        values = values * 255.0
    elif high > 255 or sixteen_bit:
        values = values / 256.0
    return PIL.Image.fromarray(values.astype(np.uint8))


def _lab_to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    lab, srgb = PIL.ImageCms.createProfile("LAB"), PIL.ImageCms.createProfile("sRGB")
    converted = PIL.ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None, "only in-place conversions return None"
    return converted


def to_square(image: PIL.Image.Image, resolution: int, resize_mode: ResizeMode = "crop") -> PIL.Image.Image:
    """Resize an RGB image to a square of `resolution` pixels.

    Raises:
        ImageError: the aspect ratio exceeds MAX_ASPECT_RATIO, or the mode is unknown.
    """
    _require_aspect_ratio(image)
    if resize_mode == "pad":
        return _pad(image, resolution)
    if resize_mode != "crop":
        raise ImageError(f'resize_mode={resize_mode!r} is unknown; expected "crop" or "pad".')
    scale = resolution / min(image.size)
    resized = _resize(image, round(scale * image.width), round(scale * image.height))
    return _center_crop(resized, resolution, resolution)


def nearest_grid(size: tuple[int, int], grids: Sequence[Grid]) -> Grid:
    """Return the grid, rows and columns, whose aspect ratio is most similar to an image's.

    Of two that are as similar the wider one, as in Lumina-mGPT.

    >>> nearest_grid((640, 480), [(8, 8), (6, 10), (10, 6), (6, 8)])
    (6, 8)
    """
    width, height = size

    def similarity(grid: Grid) -> tuple[float, int, int]:
        scales = grid[1] / width, grid[0] / height
        return min(scales) / max(scales), grid[1], grid[0]

    return max(grids, key=similarity)


def crop_to_size(image: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    """Resize an RGB image until it covers a size in pixels, and cut what exceeds it, evenly.

    Raises:
        ImageError: the aspect ratio exceeds MAX_ASPECT_RATIO.
    """
    _require_aspect_ratio(image)
    scale = max(width / image.width, height / image.height)
    resized = _resize(image, max(width, round(scale * image.width)), max(height, round(scale * image.height)))
    return _center_crop(resized, width, height)


def _center_crop(image: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def mask_to_size(mask: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    """Crop and resize a mask as `crop_to_size` does its image, and `to_square` for squares.

    Transparent pixels are selected, or in a mask without transparency the light ones. The result
    is gray: 255 where any pixel is selected, else 0.
    """
    if "A" in mask.getbands() or "transparency" in mask.info:
        selected = mask.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha == 0))
    else:
        selected = mask.convert("L").point(lambda value: 255 * (value > 127))
    scale = max(width / mask.width, height / mask.height)
    size = max(width, round(scale * mask.width)), max(height, round(scale * mask.height))
    resized = selected.resize(size, PIL.Image.Resampling.BOX).point(lambda share: 255 * (share > 0))
    return _center_crop(resized, width, height)


def _require_aspect_ratio(image: PIL.Image.Image) -> None:
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"an image of {width} x {height} pixels; expected sides that differ at most "
            f"{MAX_ASPECT_RATIO}-fold. Crop it, or drop its document."
        )


def _pad(image: PIL.Image.Image, resolution: int) -> PIL.Image.Image:
    scale = resolution / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    square = PIL.Image.new("RGB", (resolution, resolution), _WHITE)
    corner = ((resolution - width) // 2, (resolution - height) // 2)
    square.paste(_resize(image, width, height), corner)
    return square


def _resize(image: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), PIL.Image.Resampling.LANCZOS)
