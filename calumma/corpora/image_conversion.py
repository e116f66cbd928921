"""Pictures on their way into documents: vectors drawn, large ones made smaller, files written."""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path

import numpy as np
import PIL.Image

from calumma.documents.document import Image
from calumma.documents.image_decoding import MAX_PIXELS
from calumma.documents.scorers import on_white
from calumma.errors import CorpusError, ImageError

SVG_SIDE = 256
"""Pixels of the longer side at which vectors are drawn."""

MAX_IMAGE_SIDE = 512
"""Pixels of the longer side above which a raster picture is made smaller."""

_BOMBS = (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError)


def rasterize_svg(svg: str, side: int = SVG_SIDE) -> bytes:
    """Draw a vector so that it fits a square.

    Args:
        svg: the XML text.
        side: pixels of the longer side.

    Returns:
        A PNG file with transparency.

    Raises:
        CorpusError: resvg_py is not installed.
        ImageError: the text is no SVG that can be drawn.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise CorpusError(
            "this corpus holds vector pictures, and resvg_py is not installed; expected it to draw "
            "them. Install it: pip install 'calumma[corpora]'."
        ) from error
    try:
        # The width decides the scale; a tall vector comes out higher and is fitted afterwards.
        # Without the system's fonts a picture is the same on every machine. Sizes in points need
        # a resolution: CSS's, of which resvg_py would take 0.
        drawn = bytes(
            resvg_py.svg_to_bytes(svg_string=svg, width=side, dpi=96, skip_system_fonts=True)
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise ImageError(
            f"a vector picture cannot be drawn ({error}); expected SVG. Leave it out."
        ) from error
    picture = PIL.Image.open(io.BytesIO(drawn))
    return drawn if picture.height <= side else encode_small_png(fit_within(picture, side))


def fit_within(picture: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """The picture in RGB or RGBA, made smaller if its longer side is over `side` pixels."""
    picture = picture.convert("RGBA" if has_transparency(picture) else "RGB")
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize((width, height), PIL.Image.Resampling.LANCZOS)


def has_transparency(picture: PIL.Image.Image) -> bool:
    """Whether any pixel of the picture is not wholly opaque."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return False
    lowest = np.asarray(picture.convert("RGBA").getchannel("A")).min()
    return bool(lowest < 255)


def encode_small_png(picture: PIL.Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def encode_webp(picture: PIL.Image.Image, quality: int) -> bytes:
    """The picture as a lossy WebP file; `quality` (0 to 100) is that of colours and of alpha."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, alpha_quality=quality, method=4)
    return buffer.getvalue()


def image_from_file(path: Path) -> Image:
    """A picture's file, read when it is expected; a vector is drawn at once.

    Raises:
        ImageError: the file holds no picture that may be opened.
    """
    if path.suffix == ".svg":
        return Image(data=rasterize_svg(path.read_text("utf-8", errors="replace")))
    image_size(path)
    return Image(path=path)


def shrink_image(image: Image, max_side: int = MAX_IMAGE_SIDE) -> Image:
    """The picture in memory: the bytes of its file, or WebP where it had to be made smaller.

    Raises:
        ImageError: the picture cannot be read.
    """
    if image.path is None or max(image_size(image.path)) <= max_side:
        return Image(data=image.read_bytes())
    return Image(data=encode_webp(fit_within(image.open(), max_side), quality=90))


@functools.lru_cache(maxsize=100_000)
def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, read from the head of the file; vectors count as drawn.

    Raises:
        ImageError: the file holds no picture.
    """
    if path.suffix == ".svg":
        return SVG_SIDE, SVG_SIDE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as picture:
                size = picture.size
    except (OSError, SyntaxError, ValueError, *_BOMBS) as error:
        raise ImageError(f"{path}: no picture can be read there; leave it out.") from error
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"{path}: {size[0]} x {size[1]} pixels are too many; leave it out.")
    return size


def is_blank(picture: PIL.Image.Image) -> bool:
    """Whether hardly anything is to be seen, on white as on black: nearly one colour."""
    shown = np.asarray(on_white(picture).convert("L"), dtype=np.float64)
    if not has_transparency(picture):
        return float(shown.std()) < 8
    alpha = np.asarray(picture.convert("RGBA").getchannel("A"), dtype=np.float64)
    return float(shown.std()) < 8 or float((alpha > 32).mean()) < 0.04
