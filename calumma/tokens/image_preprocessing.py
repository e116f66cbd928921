"""A picture of any mode and size -> an upright RGB square, exactly as the release prepares it.

Pillow and numpy alone: whoever only looks at pictures, a process that opens strangers' files say,
need not load torch.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import PIL.Image
import PIL.ImageCms

from calumma.documents.image_decoding import broken_image_message
from calumma.errors import ImageError

ResizeMode = Literal["crop", "pad"]
"""How a picture that is not square becomes square: what sticks out is cut away, or white borders
are added (for pictures in prompts)."""

MAX_ASPECT_RATIO = 100
"""A picture longer than this many times its width (or wider) is refused: nothing of it is left."""

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
"""How a picture is turned upright, by the orientation in its EXIF; any other is upright."""


def to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture upright, in RGB, with white behind what is transparent.

    The blend is cut, not rounded, to whole numbers: the release does so. It stands before any
    resizing, so that no colour hidden under transparency bleeds into the edges.

    Raises:
        ImageError: the picture cannot be decoded, or its numbers are no brightness.
    """
    decode = picture.load
    try:
        decode()
    except Exception as error:
        raise ImageError(broken_image_message("a picture", error)) from error
    picture = _apply_exif_orientation(picture)
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    wide = _to_eight_bit(picture).convert("RGBA")
    values = np.asarray(wide)
    if values[:, :, 3].min() == 255:
        return wide.convert("RGB")
    alpha = values[:, :, 3:] / 255.0
    blended = (1.0 - alpha) * 255.0 + alpha * values[:, :, :3]
    return PIL.Image.fromarray(blended.astype(np.uint8))


def _apply_exif_orientation(picture: PIL.Image.Image) -> PIL.Image.Image:
    try:
        turn = _EXIF_TRANSPOSE.get(picture.getexif().get(_ORIENTATION, 1))
    # Broken EXIF says nothing of how the camera was held, and is no reason to refuse the picture.
    except Exception:
        return picture
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.info = {name: value for name, value in picture.info.items() if name == "transparency"}
    return turned


def _to_eight_bit(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture in a mode that Pillow itself can turn into RGBA without losing light."""
    if picture.mode in _SIXTEEN_BIT:
        # Pillow's own conversion clips at 255; the high byte is the picture.
        return PIL.Image.fromarray((np.asarray(picture.convert("I")) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        return _scale_to_eight_bit(np.asarray(picture), sixteen_bit=picture.format == "PPM")
    if picture.mode == "LAB":
        return _lab_to_rgb(picture)
    return picture.convert("LA") if picture.mode == "La" else picture


def _scale_to_eight_bit(values: np.ndarray, *, sixteen_bit: bool) -> PIL.Image.Image:
    """Grey from 32-bit numbers, whose range says what white is: 1 (if they are fractions), 255
    or 65,535.
    """
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65_535):
        raise ImageError(
            f"a picture of numbers from {low:g} to {high:g}; expected 0 to 1, 0 to 255 or 0 to "
            "65,535. Scale them, or leave its document out."
        )
    if high <= 1 and values.dtype.kind == "f":
        values = values * 255.0
    elif high > 255 or sixteen_bit:
        values = values / 256.0
    return PIL.Image.fromarray(values.astype(np.uint8))


def _lab_to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    lab, srgb = PIL.ImageCms.createProfile("LAB"), PIL.ImageCms.createProfile("sRGB")
    converted = PIL.ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    assert converted is not None, "only in-place conversions give None"
    return converted


def to_square(
    picture: PIL.Image.Image, resolution: int, fit: ResizeMode = "crop"
) -> PIL.Image.Image:
    """An RGB picture as a square of `resolution` pixels to a side.

    Raises:
        ImageError: the picture is a mere line (see MAX_SIDES_RATIO).
    """
    width, height = picture.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"a picture of {width} x {height} pixels; expected sides that differ at most "
            f"{MAX_ASPECT_RATIO}-fold. Cut it, or leave its document out."
        )
    if fit == "pad":
        return _pad(picture, resolution)
    if fit != "crop":
        raise ImageError(f'fit={fit!r} is not known; expected "crop" or "pad".')
    scale = resolution / min(width, height)
    resized = _resize(picture, round(scale * width), round(scale * height))
    left, top = (resized.width - resolution) // 2, (resized.height - resolution) // 2
    return resized.crop((left, top, left + resolution, top + resolution))


def _pad(picture: PIL.Image.Image, resolution: int) -> PIL.Image.Image:
    scale = resolution / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    square = PIL.Image.new("RGB", (resolution, resolution), _WHITE)
    place = ((resolution - width) // 2, (resolution - height) // 2)
    square.paste(_resize(picture, width, height), place)
    return square


def _resize(picture: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), PIL.Image.Resampling.LANCZOS)
