"""Process that decodes untrusted image files under resource limits.

    python -m calumma.serve.images.decoder_worker MEMORY_BYTES

It reads requests from stdin and writes responses to stdout, one after the other: a line of JSON,
followed by the number of bytes that the line gives. It cannot open or write files, and its memory
is limited; `ImageDecoderPool` kills it when an image takes too long.

    request    {"bytes": 1234, "resolution": 512, "fit": "pad", "max_pixels": 9, "name": "..."}
    response   {"bytes": 786432, "size": [W, H]} and R x R x 3 bytes of RGB, or {"bytes": 0, "error": "..."}
"""

import contextlib
import io
import json
import resource
import sys
from pathlib import Path
from typing import Any, BinaryIO, Literal

import PIL.Image

from calumma.documents.image_decoding import open_image
from calumma.errors import ImageError
from calumma.tokens.image_preprocessing import ResizeMode, mask_to_square, to_rgb, to_square

Fit = ResizeMode | Literal["mask"]
"""How an image becomes a square."""


def decode_square(data: bytes, *, resolution: int, fit: Fit, max_pixels: int, name: str) -> PIL.Image.Image:
    """Decode an image file to an RGB square; `info["size"]` is the upright size of the file's image.

    Args:
        data: the file.
        resolution: side of the square in pixels.
        fit: whether the image is padded or cropped to a square; "mask" is `mask_to_square`.
        max_pixels: largest image that is decoded.
        name: name of the image in messages.

    Raises:
        ImageError: it is not an image, is damaged, or has too many pixels.
    """
    try:
        image = open_image(data, name, max_pixels)
        if fit == "mask":
            square = mask_to_square(image, resolution).convert("RGB")
        else:
            image = to_rgb(image)
            square = to_square(image, resolution, fit)
        square.info["size"] = image.size
        return square
    except MemoryError as error:
        raise ImageError(
            f"{name}: needs more memory than an image may have here; expected a smaller one. "
            "Save it with fewer pixels."
        ) from error


def serve_requests(requests: BinaryIO, responses: BinaryIO) -> None:
    """Decode images until the stream of requests ends."""
    while line := requests.readline():
        options = json.loads(line)
        data = requests.read(options.pop("bytes"))
        header: dict[str, Any] = {}
        try:
            square = decode_square(data, **options)
            pixels, header = square.tobytes(), {"size": square.info["size"]}
        except ImageError as error:
            pixels, header = b"", {"error": str(error)}
        header["bytes"] = len(pixels)
        responses.write(json.dumps(header).encode() + b"\n" + pixels)
        responses.flush()


def set_rlimits(memory_bytes: int) -> None:
    """Limit this process: `memory_bytes` of additional memory, no new files, no core dumps.

    No module can be imported afterwards.
    """
    limits = {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 3}
    statm = Path("/proc/self/statm")
    if statm.exists():  # macOS has neither this file nor an enforced memory limit
        limits["RLIMIT_AS"] = memory_bytes + int(statm.read_text().split()[0]) * resource.getpagesize()
    for name, value in limits.items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))


def warm_up_codecs() -> None:
    """Decode an image of each format, so that all modules that decoding needs are imported."""
    PIL.Image.init()
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        file = io.BytesIO()
        mode = "P" if kind == "GIF" else "RGB"
        with contextlib.suppress(ImageError, OSError, KeyError):
            PIL.Image.new(mode, (16, 16)).save(file, kind)
            decode_square(file.getvalue(), resolution=8, fit="pad", max_pixels=256, name=kind)


if __name__ == "__main__":
    warm_up_codecs()
    set_rlimits(int(sys.argv[1]))
    serve_requests(sys.stdin.buffer, sys.stdout.buffer)
