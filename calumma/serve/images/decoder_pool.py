"""Pool of processes that decode untrusted images; one that hangs or crashes is replaced."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import PIL.Image

from calumma.errors import ImageError
from calumma.serve.config import ServeLimits
from calumma.serve.images.decoder_worker import Fit
from calumma.vocabulary import Grid


class _ProcessLostError(Exception):
    """A decoder process hung or crashed."""


class ImageDecoderPool:
    """Decodes images in child processes. Several threads may use it.

    A process is started when it is first needed, and again after it was lost.
    """

    def __init__(
        self,
        resolution: int,
        limits: ServeLimits,
        on_crash: Callable[[], None] = lambda: None,
        *,
        grids: Sequence[Grid] = (),
        cell: int = 1,
    ) -> None:
        """Create a pool that decodes to squares of `resolution` pixels, or to grids of cells."""
        self.options = {"resolution": resolution, "max_pixels": limits.max_pixels, "grids": grids, "cell": cell}
        sizes = {(columns * cell, rows * cell) for rows, columns in grids}
        self.sizes = sizes or {(resolution, resolution)}
        """Sizes of decoded images, (width, height) in pixels."""

        self.limits = limits
        self.on_crash = on_crash
        self.idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
        for _ in range(limits.image_processes):
            self.idle.put(None)

    def decode(self, data: bytes, name: str, fit: Fit) -> PIL.Image.Image:
        """Decode an image file to RGB in a size of the pool.

        `info["size"]` of the result is the size of the file's image, turned upright.

        Args:
            data: the file.
            name: name of the image in messages.
            fit: whether the image is padded or cropped to a square; "mask" is `mask_to_size`.

        Raises:
            ImageError: it is not an image, is too large, or its decoder hung or crashed.
        """
        process = self.idle.get()
        replacement: subprocess.Popen[bytes] | None = None
        try:
            process = process or self._start()
            response, pixels = self._exchange(process, data, {"name": name, "fit": fit})
            replacement = process
        except _ProcessLostError as error:
            self.on_crash()
            raise ImageError(
                f"{name}: {error}; expected an ordinary image. Save it as PNG, or leave it out."
            ) from None
        finally:
            # The pool keeps its size; a process in an unknown state is not used again.
            if replacement is None:
                self._end(process)
            self.idle.put(replacement)
        if "error" in response:
            raise ImageError(str(response["error"]))
        image = PIL.Image.frombytes("RGB", tuple(response["fitted"]), pixels)
        image.info["size"] = tuple(response["size"])
        return image

    def _start(self) -> subprocess.Popen[bytes]:
        module = "calumma.serve.images.decoder_worker"
        return subprocess.Popen(
            [sys.executable, "-m", module, str(self.limits.image_memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the server, which ends its children itself.
            start_new_session=True,
        )

    def _exchange(
        self, process: subprocess.Popen[bytes], data: bytes, options: dict[str, Any]
    ) -> tuple[dict[str, Any], bytes]:
        """Return the response of a process and its pixels, or raise `_ProcessLostError`."""
        assert process.stdin is not None and process.stdout is not None
        seconds = self.limits.image_timeout_seconds
        options |= self.options
        deadline = time.monotonic() + seconds
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            header = json.dumps({"bytes": len(data), **options})
            process.stdin.write(header.encode() + b"\n" + data)
            process.stdin.flush()
            response: dict[str, Any] = json.loads(process.stdout.readline())
            pixels = b""
            if "error" not in response:
                width, height = response["fitted"]
                # The process is not trusted: it must not make this one read without end.
                size = 3 * width * height if (width, height) in self.sizes else -1
                pixels = process.stdout.read(max(0, size))
                if len(pixels) != size:
                    raise ValueError
            if time.monotonic() >= deadline:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError) as error:
            is_hung = time.monotonic() >= deadline
            why = f"took longer than {seconds:g} s to decode" if is_hung else "crashed its decoder"
            raise _ProcessLostError(why) from error
        finally:
            timer.cancel()
        return response, pixels

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            process.kill()
            with process:
                pass

    def close(self) -> None:
        """End the idle processes. Call it when no thread decodes any more."""
        for _ in range(self.limits.image_processes):
            try:
                self._end(self.idle.get(timeout=1.0))
            except queue.Empty:
                return
