"""Columns of a record: images, texts, attributes, and what is left over."""

import base64
import datetime
import io
from typing import Any

import PIL.Image
import pytest

from calumma.documents.record_columns import (
    ColumnReader,
    is_file_name,
    is_image_name,
    is_text_name,
    names_image,
    web_image,
)
from tests.documents.image_files import RED


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "red").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI"]
)
def test_bytes_of_every_image_format_are_images_whatever_the_column_is_called(kind: str) -> None:
    if kind == "AVIF" and "AVIF" not in PIL.Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    data = encoded(kind)
    for value in (data, {"bytes": data, "path": None}, [data]):
        [part] = ColumnReader("x").column("blob", value)
        assert part == {"type": "image", "bytes": data, "column": "blob"}
    if kind not in ("PPM", "ICO", "QOI"):
        [part] = ColumnReader("x").column("blob", base64.b64encode(data).decode())
        assert part["bytes"] == data


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("image", "image"), ("Images", "image"), ("img_0", "image"), ("image_1", "image"), ("jpg", "image"),
        ("image_base64", "image"), ("image_path", "file"), ("img_url", "file"), ("file_name", "file"),
        ("filename", "file"), ("TEXT", "text"), ("alt_text", "text"), ("imagery", ""), ("context", ""),
        ("image_id", ""),
    ],
)  # fmt: skip
def test_names_of_columns(name: str, kind: str) -> None:
    assert (is_image_name(name), is_file_name(name), is_text_name(name)) == (
        kind == "image",
        kind == "file",
        kind == "text",
    )


@pytest.mark.parametrize(
    ("value", "use", "attribute"),
    [
        (7, "attribute", "7"),
        (True, "attribute", "True"),
        (datetime.date(2020, 1, 2), "attribute", "2020-01-02"),
        ("two words", "attribute", "two words"),
        (["a", "b"], "attribute", "a, b"),
        ("en cs.CL cs.LG", "attribute", "en cs.CL cs.LG"),
        ([1.5, 2.0], "not read", None),
        ({"a": [1]}, "not read", None),
        ("three whole words", "left over", "three whole words"),
        (b"\xff\xfe\x00", "left over", None),
        (None, None, None),
        (float("nan"), None, None),
        ("", None, None),
        ([], None, None),
    ],
)
def test_values_of_an_unknown_column(value: Any, use: str | None, attribute: str | None) -> None:
    reader = ColumnReader("x")
    assert reader.column("other", value) == []
    assert {found for found, _ in reader.account.counts} == ({use} if use else set())
    assert reader.attributes.get("other") == attribute


def test_a_long_list_of_strings_is_not_kept() -> None:
    reader = ColumnReader("x")
    reader.column("words", ["w" * 100] * 100)
    assert reader.account.total("attribute") + reader.account.total("not read") == 100
    assert len(reader.attributes["words"]) < 4400


def test_an_image_that_was_not_downloaded() -> None:
    assert web_image({"url": "https://x/1.jpg", "text": "a"}) == "url"
    assert web_image({"URL": "https://x/1", "WIDTH": 4}) == "URL"
    assert web_image({"url": "https://x/page", "text": "a"}) is None
    assert names_image("a.JPG?size=3")
    assert not names_image(b"a.jpg")


def test_ignored_columns_are_counted() -> None:
    reader = ColumnReader("x", ["a", "b.c"])
    assert reader.parts({"a": RED, "b": {"c": "three whole words", "d": 1}}) == []
    assert reader.account.to_json() == {"attribute": {"b.d": 1}, "not read": {"a (ignored)": 1, "b.c (ignored)": 1}}
