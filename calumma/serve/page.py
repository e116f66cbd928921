"""The page at `/` and its files, which ship with the package."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from calumma.serve.api_errors import APIError

FOLDER = Path(__file__).parent / "page"

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".woff2": "font/woff2",
}
"""What may be served, and as what."""


class Page:
    """The files of the page, read once: what a URL names is looked up, never opened."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.files = {
            path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in KINDS
        }

    def response(self, name: str) -> Response:
        """One file.

        Raises:
            Refusal: there is none of that name.
        """
        data = self.files.get(name)
        if data is None:
            message = "the page has no file of that name; / is the page."
            raise APIError(404, message, "not_found")
        kind = KINDS[Path(name).suffix]
        # Always asked for anew: after an update of the server no old script meets a new API.
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})
