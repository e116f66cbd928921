"""Over a hundred broken and hostile image files, made here, each with what must become of it."""

import functools
import io
import struct
import zlib
from typing import Literal

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

Fate = Literal["refused", "handled", "either"]
"""Refused with an `ImageError`; handled, so that it has codes; or either, as decoders differ."""


def saved(image: PIL.Image.Image, kind: str, **settings: object) -> bytes:
    """Encode an image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **settings)  # type: ignore[arg-type]
    return file.getvalue()


@functools.cache
def scene(mode: str = "RGB", side: int = 96) -> PIL.Image.Image:
    """Return an image without black or gray, and without uniform areas."""
    y, x = np.mgrid[0:side, 0:side]
    values = np.stack([140 + x % 100, 150 + (x + y) % 90, 160 + y % 80], axis=-1)
    chance = np.random.default_rng(0)
    values += chance.integers(0, 8, values.shape)
    return PIL.Image.fromarray(values.astype(np.uint8)).convert(mode)


def chunk(name: bytes, body: bytes, crc: int | None = None) -> bytes:
    """Return a chunk of a PNG."""
    crc = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def png(
    width: int, height: int, rows: bytes, *, depth: int = 8, kind: int = 2, more: bytes = b"",
    interlaced: int = 0,
) -> bytes:  # fmt: skip
    """Return a PNG with any header and any data."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_rows(number: int) -> bytes:
    """Return the first rows of the scene, uncompressed."""
    return b"".join(b"\0" + row.tobytes() for row in np.asarray(scene())[:number])


def gif(width: int, height: int) -> bytes:
    """Return a GIF with hardly any data for its size."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0"
    return b"GIF89a" + screen + frame + b";"


def tiff(entries: list[tuple[int, int, int, int]], *, following: int = 0, rest: bytes = b"") -> bytes:
    """Return a little-endian TIFF of one directory: (tag, type, count, value) each."""
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", following) + rest


def lab_tiff() -> bytes:
    """Return a TIFF of 8 by 8 pixels in CIELAB: L 78 %, a 20, b 9."""
    entries = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 8),
               (273, 4, 1, 128), (277, 3, 1, 3), (278, 3, 1, 8), (279, 4, 1, 192)]  # fmt: skip
    return tiff(entries, rest=struct.pack("<HHH", 8, 8, 8) + bytes([200, 20, 9] * 64))


def float_tiff(values: np.ndarray) -> bytes:
    """Return a TIFF of floats."""
    return saved(PIL.Image.fromarray(values.astype(np.float32)), "TIFF")


def bmp(width: int, height: int, rows: bytes) -> bytes:
    """Return a BMP of 24 bits with any header."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + info + rows


def ico(image: bytes, side: int) -> bytes:
    """Return an icon with any bytes as its one image."""
    entry = struct.pack("<BBBBHHII", side % 256, side % 256, 0, 0, 1, 32, len(image), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + image


def with_exif(orientation: int) -> bytes:
    """Return a JPEG with an EXIF orientation."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return saved(scene(), "JPEG", exif=exif)


def cut_files() -> dict[str, tuple[bytes, Fate]]:
    """Return each format, truncated at several positions."""
    files = {
        "jpeg": saved(scene(), "JPEG", quality=90),
        "progressive": saved(scene(), "JPEG", progressive=True),
        "grey-jpeg": saved(scene("L"), "JPEG"),
        "cmyk": saved(scene("CMYK"), "JPEG"),
        "png": saved(scene(), "PNG"),
        "palette-png": saved(scene().quantize(64), "PNG"),
        "gif": saved(scene(), "GIF"),
        "webp": saved(scene(), "WEBP"),
        "lossless-webp": saved(scene(), "WEBP", lossless=True),
        "bmp": saved(scene(), "BMP"),
        "tiff": saved(scene(), "TIFF"),
        "lzw-tiff": saved(scene(), "TIFF", compression="tiff_lzw"),
        "deflate-tiff": saved(scene(), "TIFF", compression="tiff_adobe_deflate"),
        "ppm": saved(scene(), "PPM"),
        "ico": saved(scene(), "ICO", sizes=[(64, 64)]),
    }
    return {
        f"{name}-cut-at-{share}": (data[: len(data) * share // 100], "refused")
        for name, data in files.items()
        for share in (5, 40, 80)
    }


def ends_too_early() -> dict[str, tuple[bytes, Fate]]:
    """Return files with too little data for their headers."""
    jpeg, progressive = saved(scene(), "JPEG"), saved(scene(), "JPEG", progressive=True)
    start = jpeg.index(b"\xff\xda") + 14
    exif = PIL.Image.Exif()
    exif[0x010E] = "a thumbnail would stand here " * 20
    described = saved(scene(), "JPEG", exif=exif)
    raw = saved(scene(), "PNG")
    offset = raw.index(b"IDAT")
    return {
        "jpeg-without-data": (jpeg[:start] + b"\xff\xd9", "refused"),
        "jpeg-half-and-an-end": (jpeg[: len(jpeg) // 2] + b"\xff\xd9", "refused"),
        "jpeg-most-and-an-end": (jpeg[: len(jpeg) * 3 // 4] + b"\xff\xd9", "refused"),
        "described-half-and-an-end": (described[: len(described) * 3 // 5] + b"\xff\xd9",
                                      "refused"),
        "progressive-without-fine-scans": (progressive[: len(progressive) * 4 // 5] + b"\xff\xd9",
                                           "handled"),
        "jpeg-without-its-end-mark": (jpeg[:-2], "refused"),
        "jpeg-with-words-behind": (jpeg + b"and some words", "handled"),
        "jpeg-twice": (jpeg + jpeg, "handled"),
        "png-half-its-rows": (png(96, 96, zlib.compress(png_rows(48))), "refused"),
        "png-no-rows": (png(96, 96, zlib.compress(b"")), "refused"),
        "png-too-many-rows": (png(96, 90, zlib.compress(png_rows(96))), "handled"),
        "png-interlaced-half": (png(96, 96, zlib.compress(png_rows(48)), interlaced=1), "refused"),
        "png-rows-of-grey-only": (png(96, 96, zlib.compress(bytes(97 * 20)), kind=0), "refused"),
        "png-palette-half": (
            png(96, 96, zlib.compress(bytes(97 * 48)), kind=3, more=chunk(b"PLTE", b"\xff\0\0")),
            "refused",
        ),
        "png-wrong-crc": (raw[: offset + 9] + b"\0" + raw[offset + 10 :], "refused"),
        "png-no-end": (raw[:-12], "either"),
        "png-no-data-chunk": (raw[: offset - 4] + chunk(b"IEND", b""), "refused"),
    }  # fmt: skip


def false_headers() -> dict[str, tuple[bytes, Fate]]:
    """Return files with false headers: bombs, zero sizes, one-pixel lines."""
    little = zlib.compress(bytes(100))
    raw = saved(scene(), "JPEG")
    size = raw.index(b"\xff\xc0") + 5
    complete_webp = saved(scene(), "WEBP")
    return {
        "png-60000": (png(60_000, 60_000, little), "refused"),
        "png-9000": (png(9000, 9000, little), "refused"),
        "png-wide-beyond-belief": (png(2**31 - 1, 1, little), "refused"),
        "png-no-width": (png(0, 10, little), "refused"),
        "png-no-height": (png(10, 0, little), "refused"),
        "png-depth-3": (png(10, 10, little, depth=3), "refused"),
        "png-kind-9": (png(10, 10, little, kind=9), "refused"),
        "png-without-its-palette": (png(10, 10, zlib.compress(bytes(110)), kind=3), "refused"),
        "gif-65535": (gif(65_535, 65_535), "refused"),
        "gif-0": (gif(0, 0), "refused"),
        "gif-little-data": (gif(500, 500), "refused"),
        "jpeg-65000": (raw[:size] + b"\xfd\xe8\xfd\xe8" + raw[size + 4 :], "refused"),
        "jpeg-0": (raw[:size] + bytes(4) + raw[size + 4 :], "refused"),
        "jpeg-taller": (raw[:size] + b"\x01\x90\0\x60" + raw[size + 4 :], "refused"),
        "bmp-60000": (bmp(60_000, 60_000, b"\xff" * 30), "refused"),
        "bmp-below-nothing": (bmp(-10, 10, b"\xff" * 300), "refused"),
        "bmp-upside-down": (bmp(8, -8, b"\xc8" * 192), "handled"),
        "ppm-lies": (b"P6 5000 5000 255\n" + b"\xff" * 30, "refused"),
        "ppm-negative": (b"P6 -5 5 255\n" + b"\xff" * 30, "refused"),
        "ppm-no-white": (b"P6 5 5 0\n" + b"\xff" * 75, "refused"),
        "ppm-words": (b"P3 2 2 255 one two three", "refused"),
        "tiff-circle": (tiff([(256, 4, 1, 8), (257, 4, 1, 8)], following=8), "refused"),
        "tiff-empty": (tiff([]), "refused"),
        "tiff-100000": (
            tiff([(256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 8), (259, 3, 1, 1),
                  (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 100_000),
                  (279, 4, 1, 100)]),
            "refused",
        ),
        "ico-of-a-bomb": (ico(png(60_000, 60_000, little), 32), "refused"),
        "ico-of-a-large-one": (ico(png(9000, 9000, little), 32), "refused"),
        "ico-of-words": (ico(b"words", 16), "refused"),
        "webp-broken-inside": (complete_webp[:40] + bytes(60) + complete_webp[100:], "either"),
        "webp-length-lies": (complete_webp[:4] + b"\xff\xff\xff\x7f" + complete_webp[8:], "either"),
        "line-across": (saved(PIL.Image.new("RGB", (100_000, 1), "red"), "PNG"), "refused"),
        "line-down": (saved(PIL.Image.new("RGB", (1, 100_000), "red"), "PNG"), "refused"),
    }  # fmt: skip


def strange() -> dict[str, tuple[bytes, Fate]]:
    """Whole files of kinds that are seldom met, and files that hold no image."""
    several = {"save_all": True, "append_images": [scene().rotate(90)]}
    holes = np.linspace(0.3, 1, 64 * 64).reshape(64, 64)
    profile = {"icc_profile": b"this is no profile" * 10}
    texts = PngInfo()
    texts.add_text("Comment", "long " * 100_000, zip=True)
    deep = np.full((64, 64), 0x9000, np.uint16)
    deep_rows = b"".join(b"\0" + bytes([200, 7] * 3 * 16) for _ in range(16))
    clear = scene("RGBA").quantize(16)
    return {
        "animated.gif": (saved(scene(), "GIF", **several), "handled"),
        "animated.webp": (saved(scene(), "WEBP", **several), "handled"),
        "animated.png": (saved(scene(), "PNG", **several), "handled"),
        "pages.tiff": (saved(scene(), "TIFF", **several), "handled"),
        "cmyk.jpg": (saved(scene("CMYK"), "JPEG"), "handled"),
        "cmyk.tiff": (saved(scene("CMYK"), "TIFF"), "handled"),
        "lab.tiff": (lab_tiff(), "handled"),
        "one-bit.png": (saved(scene("1"), "PNG"), "handled"),
        "grey-alpha.png": (saved(scene("LA"), "PNG"), "handled"),
        "deep-grey.png": (saved(PIL.Image.fromarray(deep), "PNG"), "handled"),
        "deep-grey.pgm": (b"P5 64 64 65535\n" + deep.byteswap().tobytes(), "handled"),
        "deep-rgb.png": (png(16, 16, zlib.compress(deep_rows), depth=16), "handled"),
        "palette-of-two.png": (saved(scene().quantize(2), "PNG", bits=1), "handled"),
        "clear-palette.png": (saved(clear, "PNG", transparency=bytes(range(16))), "handled"),
        "clear.gif": (saved(clear, "GIF", transparency=3), "handled"),
        "interlaced.png": (png(1, 1, zlib.compress(b"\0\xff\xc0\xc0"), interlaced=1), "handled"),
        "float.tiff": (float_tiff(holes), "handled"),
        "nan.tiff": (float_tiff(np.where(holes > 0.9, np.nan, holes)), "refused"),
        "infinite.tiff": (float_tiff(np.where(holes > 0.9, np.inf, holes)), "refused"),
        "metres.tiff": (float_tiff(holes * 9000 - 4000), "refused"),
        "bad-profile.png": (saved(scene(), "PNG", **profile), "handled"),
        "bad-profile.jpg": (saved(scene(), "JPEG", **profile), "handled"),
        "long-comment.png": (saved(scene(), "PNG", pnginfo=texts), "either"),
        "exif-full.jpg": (saved(scene(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 60_000), "handled"),
        "exif-words.png": (saved(scene(), "PNG", exif=b"Exif\0\0words"), "handled"),
        **{f"held-{turn}.jpg": (with_exif(turn), "handled") for turn in (0, 3, 6, 9, 60_000)},
        "empty": (b"", "refused"),
        "page.png": (b"<!doctype html><title>404</title>", "refused"),
        "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "refused"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit", "refused"),
        "paper.pdf": (b"%PDF-1.7\n", "refused"),
        "packed.png": (zlib.compress(saved(scene(), "PNG")), "refused"),
        "zeros": (bytes(5000), "refused"),
        "noise": (np.random.default_rng(1).bytes(5000), "refused"),
        "only-a-mark.png": (b"\x89PNG\r\n\x1a\n", "refused"),
        "only-a-mark.jpg": (b"\xff\xd8\xff", "refused"),
        "only-a-mark.gif": (b"GIF89a", "refused"),
        "png-named.jpg": (saved(scene(), "PNG"), "handled"),
    }  # fmt: skip


def hostile_files() -> dict[str, tuple[bytes, Fate]]:
    """All of them by name, each with what must become of it."""
    return cut_files() | ends_too_early() | false_headers() | strange()
