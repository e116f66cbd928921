"""The bytes of an image file -> a picture: refused where it is too large, broken or half there.

Decoders stop silently at some ends that come too early and leave the rest of the picture black
or grey. Such files are refused as well: a picture that is half missing teaches a model that
pictures have grey halves.
"""

from __future__ import annotations

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
"""Pictures with more pixels than this are refused unread: a small file can hold a huge one."""

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM",
    "QOI", "TIFF", "WEBP", "XBM", "XPM",
)  # fmt: skip
"""What is read. Left out are formats that Pillow gives to other programs (EPS), those without a
mark of their own, which any bytes may be taken for (TGA), and those of no use here."""

_GRAY = 128
"""What libjpeg leaves where a file has no data."""

_HEADER_LOCK = threading.Lock()
"""Filters of warnings belong to the whole process: one thread at a time may change them."""


def open_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """Decode a picture whole: the first frame of an animation, the first page of several.

    Args:
        data: an image file.
        name: what messages call it.
        max_pixels: what it may hold.

    Raises:
        ImageError: the bytes are no picture, are cut short, or hold too many pixels.
    """
    picture = _open_header(data, name, max_pixels)
    _require_pixel_limit(picture, name, max_pixels)
    try:
        picture.load()
        missing = _missing_data(data, picture)
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, "far too many", max_pixels)) from error
    # A broken file can raise anything from within a decoder: SyntaxError, struct.error, ...
    except Exception as error:
        raise ImageError(broken_image_message(name, error)) from error
    # An icon's size is known for certain once its picture has been read.
    _require_pixel_limit(picture, name, max_pixels)
    if missing:
        raise ImageError(broken_image_message(name, missing))
    return picture


def require_header(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """See that bytes begin as a picture does; arguments and errors as of `open_picture`."""
    _require_pixel_limit(_open_header(data, name, max_pixels), name, max_pixels)


def broken_image_message(name: str, error: object) -> str:
    """The message about a picture that cannot be decoded to its end."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{name}: the picture is broken or cut short ({reason}); expected a whole file. Fetch it "
        "again, or leave its document out."
    )


def _open_header(data: bytes, name: str, max_pixels: int) -> PIL.Image.Image:
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            # Pillow warns above 89 million pixels; MAX_PIXELS refuses those below.
            warnings.simplefilter("ignore")
            return PIL.Image.open(io.BytesIO(data), formats=_available_formats())
    except PIL.UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: holds no picture that can be read (its first bytes are {data[:8]!r}); "
            "expected PNG, JPEG, WebP or another format of Pillow. Replace the file, or leave "
            "its document out."
        ) from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, "far too many", max_pixels)) from error
    except Exception as error:
        raise ImageError(broken_image_message(name, error)) from error


@functools.cache
def _available_formats() -> tuple[str, ...]:
    """Of FORMATS, those that this Pillow knows: AVIF is not in all of them."""
    PIL.Image.init()
    return tuple(kind for kind in FORMATS if kind in PIL.Image.OPEN)


def _require_pixel_limit(picture: PIL.Image.Image, name: str, most: int) -> None:
    if picture.width * picture.height > most:
        raise ImageError(_too_large(name, f"{picture.width} x {picture.height}", most))


def _too_large(name: str, pixels: str, most: int) -> str:
    return f"{name}: {pixels} pixels; expected at most {most:,}. Make the picture smaller."


def _missing_data(data: bytes, picture: PIL.Image.Image) -> str:
    """What a decoded picture lacks although its decoder was content; empty if nothing."""
    if picture.format == "PNG" and data[25:26] == b"\3" and b"PLTE" not in data:
        return "it has no palette"
    cut = _is_cut_png(data, picture) or _is_cut_jpeg(data, picture)
    return "its data ends before its last row" if cut else ""


def _is_cut_png(data: bytes, picture: PIL.Image.Image) -> bool:
    """Whether the compressed rows of a PNG end early, which Pillow leaves black and says nothing.

    Only a picture that ends in zeros can be one; its rows are unpacked once more and counted.
    """
    if picture.format != "PNG" or data[12:16] != b"IHDR":
        return False
    last = np.asarray(picture.crop((0, max(0, picture.height - 2), *picture.size)))
    if last.reshape(len(last), -1).any(1).all():
        return False
    (width, height, depth, kind), interlaced = struct.unpack(">IIBB", data[16:26]), data[28]
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    sizes = _adam7_sizes(width, height) if interlaced else [(width, height)]
    wanted = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns)
    unpacker, found, rest = zlib.decompressobj(), 0, _idat_bytes(data)
    while found < wanted and rest:
        found += len(unpacker.decompress(rest, 1 << 24))
        rest = unpacker.unconsumed_tail
    return found < wanted


def _adam7_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Columns and rows of the seven passes of an interlaced PNG."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2))  # fmt: skip
    return [
        (max(0, -(-(width - x) // across)), max(0, -(-(height - y) // down)))
        for x, y, across, down in passes
    ]


def _idat_bytes(data: bytes) -> bytes:
    """The compressed rows: what the IDAT chunks of a PNG hold, one after the other."""
    pieces, start = [], 8
    while start + 8 <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] == b"IDAT":
            pieces.append(data[start + 8 : start + 8 + length])
        start += length + 12
    return b"".join(pieces)


def _is_cut_jpeg(data: bytes, picture: PIL.Image.Image) -> bool:
    """Whether the data of a JPEG ends early although its end is marked, and its rest is grey.

    A whole picture may end in grey too: then its last bytes encode nothing but grey, and without
    some of them all that stands above is the same. In a cut one they encode what stands above.
    """
    scan = _single_scan(data) if picture.format in ("JPEG", "MPO") else None
    if scan is None:
        return False
    values = np.asarray(picture)
    if _non_gray_rows(values[-16:]).any():
        return False
    above = max(np.flatnonzero(_non_gray_rows(values)), default=-1) + 1
    # A whole file has at least two bits for each block of 8 by 8.
    fewer = min(64, (len(values) - above) // 16 * (picture.width // 8) // 2)
    if fewer < 2:
        return False
    start, end = scan
    if end - start <= fewer:
        return True
    shorter = io.BytesIO(data[: end - fewer] + data[end:])
    with PIL.Image.open(shorter, formats=("JPEG", "MPO")) as less:
        return not np.array_equal(np.asarray(less)[:above], values[:above])


def _non_gray_rows(values: np.ndarray) -> np.ndarray:
    """Which rows hold anything but the grey of missing data, which is 127 in inverted ink."""
    return ((values != _GRAY) & (values != _GRAY - 1)).reshape(len(values), -1).any(1)


def _single_scan(data: bytes) -> tuple[int, int] | None:
    """Where the compressed data of a JPEG starts and ends; None if it is in several pieces."""
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    start = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    marker = _MARKER.search(data, start)
    return (start, marker.start()) if marker and marker[0] == b"\xff\xd9" else None


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends a scan: neither a byte of data nor a mark to restart at."""
