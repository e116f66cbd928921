"""A local web server of a folder that answers range requests.

After a given number of requests it closes connections without an answer.
"""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, left: list[int], **options: Any) -> None:
        self.left = left
        super().__init__(*args, **options)

    def parse_request(self) -> bool:
        self.left[0] -= 1
        return self.left[0] >= 0 and super().parse_request()

    def do_GET(self) -> None:
        expected = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        path = Path(self.translate_path(self.path))
        if expected is None or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        start, end = int(expected[1]), int(expected[2] or len(data) - 1)
        part = data[start : end + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path, answers: int = 1 << 60, port: int = 0) -> Iterator[str]:
    """Serve a folder for a number of requests, and yield its URL."""
    handler = functools.partial(_Handler, directory=str(folder), left=[answers])
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
