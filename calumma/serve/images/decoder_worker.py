"""The process that opens strangers' pictures, so that no other has to.

    python -m calumma.serve.images.decoder_worker MEMORY_BYTES

It reads requests from its input and writes answers to its output, one after the other: a line of
JSON, and behind it as many bytes as the line says. It may use so much memory, open no more files
and write none; whoever started it ends it when a picture takes too long.

    request   {"bytes": 1234, "resolution": 512, "fit": "pad", "max_pixels": 9, "name": "..."}
    answer    {"bytes": 786432} and R x R x 3 bytes of RGB, or {"bytes": 0, "error": "..."}
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
from pathlib import Path
from typing import BinaryIO

import PIL.Image

from calumma.documents.image_decoding import open_image
from calumma.errors import ImageError
from calumma.tokens.image_preprocessing import ResizeMode, to_rgb, to_square


def decode_square(
    data: bytes, *, resolution: int, fit: ResizeMode, max_pixels: int, name: str
) -> PIL.Image.Image:
    """A picture file as the RGB square that a prompt's picture becomes.

    Raises:
        ImageError: it is no picture, is broken, or has too many pixels.
    """
    try:
        return to_square(to_rgb(open_image(data, name, max_pixels)), resolution, fit)
    except MemoryError as error:
        raise ImageError(
            f"{name}: needs more memory than a picture may have here; expected a smaller one. "
            "Save it anew with fewer pixels."
        ) from error


def serve_requests(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while line := requests.readline():
        asked = json.loads(line)
        data = requests.read(asked.pop("bytes"))
        try:
            made, told = decode_square(data, **asked).tobytes(), {}
        except ImageError as error:
            made, told = b"", {"error": str(error)}
        answers.write(json.dumps({"bytes": len(made), **told}).encode() + b"\n" + made)
        answers.flush()


def set_rlimits(memory: int) -> None:
    """Give up what is not needed: memory beyond `memory` bytes more, files, cores.

    Afterwards no file can be opened, modules that are yet to be imported included.
    """
    wanted = {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 3}
    held = Path("/proc/self/statm")
    if held.exists():  # macOS has neither this file nor a limit of memory that it keeps
        wanted["RLIMIT_AS"] = memory + int(held.read_text().split()[0]) * resource.getpagesize()
    for name, most in wanted.items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (least, least))


def warm_up_codecs() -> None:
    """Read a few pictures, so that all that reading needs is imported."""
    PIL.Image.init()
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        file = io.BytesIO()
        mode = "P" if kind == "GIF" else "RGB"
        with contextlib.suppress(ImageError, OSError, KeyError):
            PIL.Image.new(mode, (16, 16)).save(file, kind)
            decode_square(file.getvalue(), resolution=8, fit="pad", max_pixels=256, name=kind)


def main() -> None:
    """Confine this process, then answer."""
    warm_up_codecs()
    set_rlimits(int(sys.argv[1]))
    serve_requests(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
