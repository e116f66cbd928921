"""A few processes that decode pictures; one that hangs or dies is replaced."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from typing import Any

import PIL.Image

from calumma.errors import ImageError
from calumma.serve.config import ServeLimits
from calumma.tokens.image_preprocessing import ResizeMode


class ImageDecoderPool:
    """Decodes pictures of strangers in processes of their own.

    Threads may share it. A process is started when it is first needed, and again when the last
    one was lost.
    """

    def __init__(self, resolution: int, limits: ServeLimits) -> None:
        self.resolution = resolution
        self.limits = limits
        self.idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
        for _ in range(limits.image_processes):
            self.idle.put(None)
        self.num_crashes = 0
        """Processes that hung, died or ran out of memory so far."""

    def decode(self, data: bytes, name: str, fit: ResizeMode) -> PIL.Image.Image:
        """A picture file as an RGB square of the model's resolution.

        Args:
            data: the file.
            name: what messages call it.
            fit: whether it is padded or cropped to a square.

        Raises:
            ImageError: it is no picture, too large, or its decoder hung or crashed.
        """
        process = self.idle.get()
        try:
            process = process or self._start()
            answer, pixels, hung = self._ask(process, data, {"name": name, "fit": fit})
        except BaseException:
            # Whatever went wrong, the place is kept; what stood there is not trusted again.
            self._end(process)
            self.idle.put(None)
            raise
        if answer is None:
            self.num_crashes += 1
            self._end(process)
            self.idle.put(None)
            raise ImageError(self._lost_message(name, hung=hung))
        self.idle.put(process)
        if "error" in answer:
            raise ImageError(str(answer["error"]))
        return PIL.Image.frombytes("RGB", (self.resolution, self.resolution), pixels)

    def _lost_message(self, name: str, *, hung: bool) -> str:
        seconds = self.limits.image_timeout_seconds
        why = f"took longer than {seconds:g} s to decode" if hung else "crashed its decoder"
        return f"{name}: {why}; expected an ordinary picture. Save it anew as PNG, or leave it out."

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
            # Ctrl-C is for the server, which ends its processes itself.
            start_new_session=True,
        )

    def _ask(
        self, process: subprocess.Popen[bytes], data: bytes, wanted: dict[str, str]
    ) -> tuple[dict[str, Any] | None, bytes, bool]:
        """The answer, or None of a lost process; its pixels; and whether it hung."""
        assert process.stdin is not None and process.stdout is not None
        asked = {
            "bytes": len(data),
            "resolution": self.resolution,
            "max_pixels": self.limits.max_pixels,
            **wanted,
        }
        hung = threading.Event()

        def give_up() -> None:
            hung.set()
            process.kill()

        timer = threading.Timer(self.limits.image_timeout_seconds, give_up)
        timer.start()
        try:
            process.stdin.write(json.dumps(asked).encode() + b"\n" + data)
            process.stdin.flush()
            line = process.stdout.readline()
            answer = json.loads(line) if line.endswith(b"\n") else None
            size = 3 * self.resolution**2
            pixels = b"" if answer is None or "error" in answer else process.stdout.read(size)
            if answer is not None and "error" not in answer and len(pixels) < size:
                answer = None
        except (OSError, ValueError):
            return None, b"", hung.is_set()
        finally:
            timer.cancel()
        return (None if hung.is_set() else answer), pixels, hung.is_set()

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            process.kill()
            with process:
                pass

    def close(self) -> None:
        """End the processes that are idle; call it when nobody reads any more."""
        for _ in range(self.limits.image_processes):
            try:
                self._end(self.idle.get(timeout=1.0))
            except queue.Empty:
                return
