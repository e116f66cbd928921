"""Image decoding: the bytes of an image file -> a PIL image; refused if too large or truncated.

Some decoders accept truncated files silently and leave the rest of the image black or gray. Such
files are refused too: a model trained on them would learn that images have gray halves.
"""

import functools
import io
import re
import struct
import threading
import warnings
import zlib

import numpy as np
import PIL.Image

from calumma.errors import ImageError

MAX_PIXELS = 64_000_000
"""Images with more pixels are refused before decoding: a small file can hold a huge image."""

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM",
    "QOI", "TIFF", "WEBP", "XBM", "XPM",
)  # fmt: skip
"""Formats that are decoded. Excluded are those that Pillow passes to other programs (EPS), those
without a signature, which match any bytes (TGA), and those of no use here."""

_GRAY = 128
"""The value that libjpeg leaves in regions without data."""

_WARNINGS_LOCK = threading.Lock()
"""Warning filters are global to the process: one thread at a time may change them."""


def open_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """Decode an image: the first frame of an animation, the first page of several.

    Args:
        data: an image file.
        name: name of the image in messages.
        max_pixels: maximum number of pixels.

    Raises:
        ImageError: the bytes are no image, are truncated, or hold too many pixels.
    """
    image = _open_header(data, name, max_pixels)
    _require_pixel_limit(image, name, max_pixels)
    try:
        image.load()
        missing = _missing_data(data, image)
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, "far too many", max_pixels)) from error
    # A corrupt file can raise anything from within a decoder: SyntaxError, struct.error, ...
    except Exception as error:
        raise ImageError(broken_image_message(name, error)) from error
    # The size of an icon is certain only after decoding.
    _require_pixel_limit(image, name, max_pixels)
    if missing:
        raise ImageError(broken_image_message(name, missing))
    return image


def require_header(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Check that bytes begin as an image file; arguments and errors as of `open_image`."""
    _require_pixel_limit(_open_header(data, name, max_pixels), name, max_pixels)


def is_image(data: bytes) -> bool:
    """Return whether bytes begin as an image file of one of `FORMATS`; no pixel is decoded."""
    try:
        _open_header(data, "", MAX_PIXELS)
    except ImageError:
        return False
    return True


def broken_image_message(name: str, error: object) -> str:
    """Return the message for an image that cannot be decoded completely."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{name}: the image is corrupt or truncated ({reason}); expected a complete file. Download "
        "it again, or drop its document."
    )


def _open_header(data: bytes, name: str, max_pixels: int) -> PIL.Image.Image:
    try:
        with _WARNINGS_LOCK, warnings.catch_warnings():
            # Pillow warns above 89 million pixels; MAX_PIXELS is lower.
            warnings.simplefilter("ignore")
            return PIL.Image.open(io.BytesIO(data), formats=_available_formats())
    except PIL.UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image (its first bytes are {data[:8]!r}); expected PNG, JPEG, WebP or "
            "another format of Pillow. Replace the file, or drop its document."
        ) from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, "far too many", max_pixels)) from error
    except Exception as error:
        raise ImageError(broken_image_message(name, error)) from error


@functools.cache
def _available_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of Pillow has; not every one has AVIF."""
    PIL.Image.init()
    return tuple(kind for kind in FORMATS if kind in PIL.Image.OPEN)


def _require_pixel_limit(image: PIL.Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageError(_too_large(name, f"{image.width} x {image.height}", max_pixels))


def _too_large(name: str, pixels: str, max_pixels: int) -> str:
    return f"{name}: {pixels} pixels; expected at most {max_pixels:,}. Scale the image down."


def _missing_data(data: bytes, image: PIL.Image.Image) -> str:
    """Return what a decoded image lacks although its decoder raised no error; "" if nothing."""
    if image.format == "PNG" and data[25:26] == b"\3" and b"PLTE" not in data:
        return "it has no palette"
    cut = _is_cut_png(data, image) or _is_cut_jpeg(data, image)
    return "its data ends before its last row" if cut else ""


def _is_cut_png(data: bytes, image: PIL.Image.Image) -> bool:
    """Return whether the compressed rows of a PNG end early; Pillow leaves the rest black silently.

    Only an image that ends in zeros can be truncated; its rows are decompressed again and counted.
    """
    if image.format != "PNG" or data[12:16] != b"IHDR":
        return False
    last = np.asarray(image.crop((0, max(0, image.height - 2), *image.size)))
    if last.reshape(len(last), -1).any(1).all():
        return False
    (width, height, depth, kind), interlaced = struct.unpack(">IIBB", data[16:26]), data[28]
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    sizes = _adam7_sizes(width, height) if interlaced else [(width, height)]
    expected = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns)
    unpacker, found, rest = zlib.decompressobj(), 0, _idat_bytes(data)
    while found < expected and rest:
        found += len(unpacker.decompress(rest, 1 << 24))
        rest = unpacker.unconsumed_tail
    return found < expected


def _adam7_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return the columns and rows of the seven passes of an interlaced PNG."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2))  # fmt: skip
    return [(max(0, -(-(width - x) // across)), max(0, -(-(height - y) // down))) for x, y, across, down in passes]


def _idat_bytes(data: bytes) -> bytes:
    """Concatenate the IDAT chunks of a PNG: its compressed rows."""
    chunks, start = [], 8
    while start + 8 <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] == b"IDAT":
            chunks.append(data[start + 8 : start + 8 + length])
        start += length + 12
    return b"".join(chunks)


def _is_cut_jpeg(data: bytes, image: PIL.Image.Image) -> bool:
    """Return whether a JPEG with an end marker has too little data, so that the rest is gray.

    A complete image may end in gray too: its last bytes then encode only gray, and decoding
    without some of them leaves the rows above unchanged. In a truncated one those rows change.
    """
    scan = _single_scan(data) if image.format in ("JPEG", "MPO") else None
    if scan is None:
        return False
    values = np.asarray(image)
    if _non_gray_rows(values[-16:]).any():
        return False
    above = max(np.flatnonzero(_non_gray_rows(values)), default=-1) + 1
    # A complete file has at least two bits for each block of 8 by 8.
    fewer = min(64, (len(values) - above) // 16 * (image.width // 8) // 2)
    if fewer < 2:
        return False
    start, end = scan
    if end - start < fewer + (above > 0):
        return True
    if not above:
        return False  # one gray; there are no rows that could change
    shorter = io.BytesIO(data[: end - fewer] + data[end:])
    with PIL.Image.open(shorter, formats=("JPEG", "MPO")) as less:
        return not np.array_equal(np.asarray(less)[:above], values[:above])


def _non_gray_rows(values: np.ndarray) -> np.ndarray:
    """Return which rows hold anything but the gray of missing data (127 in inverted CMYK)."""
    return ((values != _GRAY) & (values != _GRAY - 1)).reshape(len(values), -1).any(1)


def _single_scan(data: bytes) -> tuple[int, int] | None:
    """Return start and end of the compressed data of a JPEG; None if it has several scans."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    start = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    marker = _MARKER.search(data, start)
    return (start, marker.start()) if marker and marker[0] == b"\xff\xd9" else None


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The end of a scan: neither a byte of data nor a restart marker."""
