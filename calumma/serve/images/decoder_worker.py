"""Process that decodes untrusted image files under resource limits.

    python -m calumma.serve.images.decoder_worker MEMORY_BYTES

It reads requests from stdin and writes responses to stdout, one after the other: a line of JSON,
followed by the number of bytes that the line gives. It cannot open or write files, and its memory
is limited; `ImageDecoderPool` kills it when an image takes too long.

    request    {"bytes": 1234, "resolution": 512, "fit": "pad", "max_pixels": 9, "name": "...",
                "grids": [[rows, columns], ...], "cell": 16}; no grids for squares
    response   {"bytes": 786432, "size": [W, H], "fitted": [w, h]} and w x h x 3 bytes of RGB, or
               {"bytes": 0, "error": "..."}
"""

import contextlib
import io
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import PIL.Image

from calumma.documents.image_decoding import open_image
from calumma.errors import ImageError
from calumma.tokens.image_preprocessing import (
    ResizeMode,
    mask_to_size,
    named_errors,
    nearest_grid,
    to_grid,
    to_rgb,
    to_square,
)
from calumma.vocabulary import Grid

Fit = ResizeMode | Literal["mask"]
"""How an image gets a size of the model."""


def decode_fitted(
    data: bytes, *, resolution: int, fit: Fit, max_pixels: int, name: str, grids: Sequence[Grid] = (), cell: int = 1
) -> PIL.Image.Image:
    """Decode an image file to RGB in a size of the model.

    `info["size"]` is the upright size of the file's image.

    Args:
        data: the file.
        resolution: side of a square in pixels.
        fit: whether the image is padded or cropped to a square; "mask" is `mask_to_size`.
        max_pixels: largest image that is decoded.
        name: name of the image in messages.
        grids: grids of cells, to the most similar of which the image is cropped; empty for squares.
        cell: pixels of a cell's side.

    Raises:
        ImageError: it is not an image, is damaged, or has too many pixels.
    """
    try:
        image = open_image(data, name, max_pixels)
        with named_errors(name):
            if fit == "mask":
                width = height = resolution
                if grids:
                    height, width = (side * cell for side in nearest_grid(image.size, grids))
                fitted = mask_to_size(image, width, height).convert("RGB")
            else:
                image = to_rgb(image)
                fitted = to_grid(image, grids, cell) if grids else to_square(image, resolution, fit)
        fitted.info["size"] = image.size
        return fitted
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
            fitted = decode_fitted(data, **options)
            pixels, header = fitted.tobytes(), {"size": fitted.info["size"], "fitted": fitted.size}
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
            decode_fitted(file.getvalue(), resolution=8, fit="pad", max_pixels=256, name=kind)


if __name__ == "__main__":
    warm_up_codecs()
    set_rlimits(int(sys.argv[1]))
    serve_requests(sys.stdin.buffer, sys.stdout.buffer)
