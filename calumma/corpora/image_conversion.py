"""Image conversion for corpora: SVG to PNG, scaling down, PNG and WebP encoding."""

import functools
import io
import warnings
from pathlib import Path

import numpy as np
import PIL.Image

from calumma.documents.document import Image
from calumma.documents.image_decoding import MAX_PIXELS
from calumma.errors import CorpusError, ImageError

SVG_SIDE = 256
"""Longer side in pixels of rasterized SVG images."""

MAX_RASTER_SIDE = 512
"""Longer side in pixels to which larger images are scaled down."""

_BOMBS = (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError)


def rasterize_svg(svg: str, side: int = SVG_SIDE) -> bytes:
    """Rasterize an SVG image so that it fits a square.

    Args:
        svg: the XML text.
        side: longer side in pixels.

    Returns:
        A PNG file with transparency.

    Raises:
        CorpusError: resvg_py is not installed.
        ImageError: the text is not valid SVG.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise CorpusError(
            "this corpus contains SVG images, and resvg_py is not installed; expected it to "
            "rasterize them. Install it: pip install 'calumma[corpora]'."
        ) from error
    try:
        # The width sets the scale; a tall image comes out higher and is scaled down afterwards.
        # Without system fonts the result is the same on every machine. Sizes in points need a
        # resolution: CSS defines 96 dpi, but resvg_py's default is 0.
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, dpi=96, skip_system_fonts=True))
    except (ValueError, RuntimeError, OSError) as error:
        raise ImageError(f"an SVG image cannot be rasterized ({error}); expected valid SVG. Exclude it.") from error
    image = PIL.Image.open(io.BytesIO(data))
    return data if image.height <= side else encode_small_png(fit_within(image, side))


def fit_within(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Convert an image to RGB or RGBA, scaled down if its longer side is over `side` pixels."""
    image = image.convert("RGBA" if has_transparency(image) else "RGB")
    scale = side / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), PIL.Image.Resampling.LANCZOS)


def has_transparency(image: PIL.Image.Image) -> bool:
    """Return whether any pixel is not opaque."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return False
    lowest = np.asarray(image.convert("RGBA").getchannel("A")).min()
    return bool(lowest < 255)


def encode_small_png(image: PIL.Image.Image) -> bytes:
    """Encode an image as an optimized PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def encode_webp(image: PIL.Image.Image, quality: int) -> bytes:
    """Encode an image as lossy WebP; `quality` (0 to 100) applies to colors and alpha."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, alpha_quality=quality, method=4)
    return buffer.getvalue()


def image_from_file(path: Path) -> Image:
    """Return an image part for a file, which is read later; an SVG file is rasterized now.

    Raises:
        ImageError: the file is not an image, or too large.
    """
    if path.suffix == ".svg":
        return Image(data=rasterize_svg(path.read_text("utf-8", errors="replace")))
    image_size(path)
    return Image(path=path)


def shrink_image(image: Image, max_side: int = MAX_RASTER_SIDE) -> Image:
    """Load an image: the bytes of its file, or WebP if it has to be scaled down.

    Raises:
        ImageError: the image is unreadable.
    """
    if image.path is None or max(image_size(image.path)) <= max_side:
        return Image(data=image.read_bytes())
    return Image(data=encode_webp(fit_within(image.open(), max_side), quality=90))


@functools.lru_cache(maxsize=100_000)
def image_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels from the file's header; for SVG the rasterized size.

    Raises:
        ImageError: the file is not an image, or too large.
    """
    if path.suffix == ".svg":
        return SVG_SIDE, SVG_SIDE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as image:
                size = image.size
    except (OSError, SyntaxError, ValueError, *_BOMBS) as error:
        raise ImageError(f"{path}: not an image; expected one. Exclude it.") from error
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"{path}: {size[0]} x {size[1]} pixels; expected at most {MAX_PIXELS:,}. Exclude it.")
    return size
