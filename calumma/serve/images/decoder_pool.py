"""Pool of processes that decode untrusted images; one that hangs or crashes is replaced."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import PIL.Image

from calumma.errors import ImageError
from calumma.serve.config import ServeLimits
from calumma.tokens.image_preprocessing import ResizeMode


class ImageDecoderPool:
    """Decodes images in child processes. Several threads may use it.

    A process is started when it is first needed, and again after it was lost.
    """

    def __init__(
        self, resolution: int, limits: ServeLimits, on_crash: Callable[[], None] = lambda: None
    ) -> None:
        """Create a pool without processes.

        Args:
            resolution: side of the decoded squares in pixels.
            limits: number, memory and timeout of the processes.
            on_crash: called when a process has hung or crashed.
        """
        self.resolution = resolution
        self.limits = limits
        self.on_crash = on_crash
        self.idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
        for _ in range(limits.image_processes):
            self.idle.put(None)

    def decode(self, data: bytes, name: str, fit: ResizeMode) -> PIL.Image.Image:
        """Decode an image file to an RGB square of the pool's resolution.

        Args:
            data: the file.
            name: name of the image in messages.
            fit: whether the image is padded or cropped to a square.

        Raises:
            ImageError: it is not an image, is too large, or its decoder hung or crashed.
        """
        process = self.idle.get()
        try:
            process = process or self._start()
            response, pixels, hung = self._exchange(process, data, {"name": name, "fit": fit})
        except BaseException:
            # The pool keeps its size, but this process is in an unknown state.
            self._end(process)
            self.idle.put(None)
            raise
        if response is None:
            self.on_crash()
            self._end(process)
            self.idle.put(None)
            raise ImageError(self._crash_message(name, hung=hung))
        self.idle.put(process)
        if "error" in response:
            raise ImageError(str(response["error"]))
        return PIL.Image.frombytes("RGB", (self.resolution, self.resolution), pixels)

    def _crash_message(self, name: str, *, hung: bool) -> str:
        seconds = self.limits.image_timeout_seconds
        why = f"took longer than {seconds:g} s to decode" if hung else "crashed its decoder"
        return f"{name}: {why}; expected an ordinary image. Save it as PNG, or leave it out."

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "calumma.serve.images.decoder_worker",
                str(self.limits.image_memory_bytes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the server, which ends its children itself.
            start_new_session=True,
        )

    def _exchange(
        self, process: subprocess.Popen[bytes], data: bytes, options: dict[str, str]
    ) -> tuple[dict[str, Any] | None, bytes, bool]:
        """Return the response (None if the process is lost), its pixels, and whether it hung."""
        assert process.stdin is not None and process.stdout is not None
        request = {
            "bytes": len(data),
            "resolution": self.resolution,
            "max_pixels": self.limits.max_pixels,
            **options,
        }
        hung = threading.Event()

        def give_up() -> None:
            hung.set()
            process.kill()

        timer = threading.Timer(self.limits.image_timeout_seconds, give_up)
        timer.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n" + data)
            process.stdin.flush()
            line = process.stdout.readline()
            response = json.loads(line) if line.endswith(b"\n") else None
            size = 3 * self.resolution**2
            pixels = b"" if response is None or "error" in response else process.stdout.read(size)
            if response is not None and "error" not in response and len(pixels) < size:
                response = None
        except (OSError, ValueError):
            return None, b"", hung.is_set()
        finally:
            timer.cancel()
        return (None if hung.is_set() else response), pixels, hung.is_set()

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
