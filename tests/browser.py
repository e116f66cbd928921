"""A browser, and a server of an application for it."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (360, 768, 1280)
"""A phone, a tablet, a laptop, in pixels."""


@contextmanager
def browser() -> "Iterator[Browser]":
    """Start a headless Chromium; the test is skipped if none is installed."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


def serious_violations(page: "Page") -> list[str]:
    """Return the serious accessibility violations that axe-core finds."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    result = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes']}" for one in result if one["impact"] in ("serious", "critical")]


def problems_of_file(path: Path) -> list[str]:
    """Return a page's serious violations, light and dark, and the widths at which it scrolls sideways."""
    found = []
    with browser() as chromium:
        for scheme in ("light", "dark"):
            page = chromium.new_context(bypass_csp=True, color_scheme=scheme).new_page()  # for axe
            page.goto(path.as_uri())
            found += serious_violations(page)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                found.append(f"wider than {width} pixels")
    return found


@contextmanager
def serve_app(app: Any) -> Iterator[str]:
    """Serve an application in a thread and yield its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
