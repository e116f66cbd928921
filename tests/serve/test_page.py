"""The page's files: those of the package, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from calumma.serve.api_errors import APIError
from calumma.serve.page import FOLDER, KINDS, Page


def test_a_file_is_served_as_what_it_is(client: TestClient) -> None:
    index = client.get("/")
    assert index.status_code == 200
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    assert index.headers["cache-control"] == "no-cache"
    for name in Page().files:
        response = client.get(f"/static/{name}")
        assert response.content == (FOLDER / name).read_bytes()
        assert response.headers["content-type"] == KINDS[Path(name).suffix]


def test_the_page_needs_nothing_but_its_own_files(client: TestClient) -> None:
    named = re.findall(r'(?:src|href)="([^"#]+)"', client.get("/").text)
    assert named
    for path in named:
        assert client.get(path).status_code == 200, path


def test_what_is_not_the_page_s_is_not_served(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("a")
    (tmp_path / "b.py").write_text("b")
    page = Page(tmp_path)
    assert page.response("a.html").body == b"a"
    for name in ("b.py", "c.html", "../a.html"):
        with pytest.raises(APIError) as caught:
            page.response(name)
        assert str(caught.value) == "the page has no file of that name; / is the page."
