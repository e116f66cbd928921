"""Columns of a record: which values are images, which are text, which are attributes.

The value decides first (bytes that begin like an image are one), then the column's name. Every
value is counted in the reader's account.
"""

import base64
import binascii
import datetime
import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

from calumma.documents.column_account import ColumnAccount
from calumma.documents.image_decoding import is_image
from calumma.documents.image_formats import IMAGE_SUFFIXES, image_suffix
from calumma.errors import DocumentError

TEXT_COLUMNS = (
    "text", "caption", "captions", "title", "description", "prompt", "alt", "alt_text", "txt", "sentence", "sentences",
)  # fmt: skip
"""Names of columns that are text of the document."""

JsonPart = dict[str, Any]
"""A part of a document in JSON, with an image as bytes, base64 or a path."""

_IMAGE_NAME = re.compile(
    r"(images?|imgs?|photos?|pictures?|jpe?g|png|webp|gif|bmp|tiff?|avif|jp2)([_-]?\d+|_?(bytes|data|base64|b64))?"
)
"""Names of columns whose strings are images (a path, a data URL or base64) and whose bytes are
images even if they do not begin like one."""

_FILE_NAME = re.compile(r"(images?|imgs?|photos?|pictures?)_?(path|file|file_?name|name|ur[li]|link|src)s?|file_?name")
"""Names of columns whose strings are images if the record has no other image."""

_URL_NAME = re.compile(r"(image|img)?_?urls?|image_links?")
_META_NAME = re.compile(r"(.*_)?(meta|metadata|exif|info)|error_message|status|urls?|sha256|md5|hash|key|__url__")
"""Names of columns that describe a document: whatever they hold is an attribute."""

_TEXT_NAME = re.compile(
    r"(.*_)?(text|txt|caption|title|prompt|question|query|answer|response|instruction|input|output|completion|solution"
    r"|problem|summary|abstract|article|body|sentence|description|story|dialog(ue)?|conversation|chosen|rejected"
    r"|rationale|explanation|context|hint|lecture|choice|option|system|content|reasoning)s?\d*"
)
"""Names of columns whose strings are text, although no shape reads them."""

_WORD = re.compile(r"[\"'(]?[^\W\d_]{1,}[\"').,;:!?]*")
_IDEOGRAPHS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{4}")
_MIN_WORDS = 3
"""A string of at least this many words is text, whatever its column is called."""

_MAX_LIST_CHARS = 4096
"""Characters of an attribute that joins the values of a list."""

_MEDIA_SUFFIXES = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".mp4", ".webm", ".mkv", ".avi", ".mov")


def is_image_name(name: str) -> bool:
    """Return whether strings and bytes of a column of this name are images."""
    return _IMAGE_NAME.fullmatch(name.lower()) is not None


def is_text_name(name: str) -> bool:
    """Return whether a column of this name is text of the document."""
    return name.lower() in TEXT_COLUMNS


def is_file_name(name: str) -> bool:
    """Return whether strings of a column are images if the record has no others."""
    return _FILE_NAME.fullmatch(name.lower()) is not None


def is_empty(value: Any) -> bool:
    """Return whether a value is null, an empty cell of pandas (NaN), or an empty text or list."""
    return value is None or value != value or (isinstance(value, str | list | dict) and not value)


def type_name(value: Any) -> str:
    """Return the name of a value's type, for messages."""
    if isinstance(value, list) and value:
        return f"a list of {type(value[0]).__name__}"
    return type(value).__name__


class ColumnReader:
    """Converts the columns of one record to parts, and keeps account of them."""

    def __init__(self, where: str, ignored: Collection[str] = ()) -> None:
        """Create a reader.

        Args:
            where: the file and row, for messages.
            ignored: names of columns that are not read; nested ones with dots.
        """
        self.where = where
        self.ignored = ignored
        self.account = ColumnAccount()
        self.attributes: dict[str, str] = {}

    def parts(self, columns: Mapping[str, Any]) -> list[JsonPart]:
        """Return the image and text parts of columns, in their order."""
        return [part for name, value in columns.items() for part in self.column(name, value)]

    def column(self, name: str, value: Any, label: str = "") -> list[JsonPart]:
        """Return the parts of one column.

        Args:
            name: decides how its values are read; of a member of a tar file the extension.
            value: any value of JSON or Arrow.
            label: the column's name in the account and in messages, if it is another one.

        Raises:
            DocumentError: a column of text or images has a value of another type.
        """
        label = label or name
        if label in self.ignored:
            self.account.add("not read", label, reason="ignored")
            return []
        if value is None or value != value:  # NaN: an empty cell of pandas
            return []
        if is_text_name(name):
            return self._texts(label, value)
        if is_empty(value):
            return []
        if isinstance(value, list) and all(isinstance(item, tuple) and len(item) == 2 for item in value):
            value = {str(key): item for key, item in value}  # Arrow's map type
        if isinstance(value, bytes):
            return self._bytes(name, value, label)
        if isinstance(value, str):
            return self._string(name, value, label)
        if isinstance(value, dict):
            return self._struct(name, value, label)
        if isinstance(value, list):
            return self._list(name, value, label)
        if is_image_name(name):
            raise DocumentError(
                f"{self.where}, column {label!r}: found {type_name(value)}; expected an image: bytes, a path, a data "
                "URL or base64. Convert the column, or rename it."
            )
        self._attribute(label, value)
        return []

    def left_over(self, label: str, value: Any) -> None:
        """Account for a value that no document holds: its images and texts are left over."""
        reader = ColumnReader(self.where, self.ignored)
        for part in reader.column(label.rpartition(".")[2], value, label):
            self._lose(part["column"], "text" if part["type"] == "text" else "an image")
        for (use, name), count in reader.account.counts.items():
            if use == "attribute":
                self.account.add("not read", name, count, "of a part")
            elif use not in ("image", "text"):
                self.account.add(use, name, count)

    def _texts(self, label: str, value: Any) -> list[JsonPart]:
        """Return the texts of a text column: a string, a list of them, or one for each language."""
        items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        items = [item[1] if isinstance(item, tuple) else item for item in items]
        texts = [self.decode(item, label) if isinstance(item, bytes) else item for item in items if item is not None]
        if not all(isinstance(text, str) for text in texts):
            raise DocumentError(
                f"{self.where}, column {label!r}: found {type_name(value)}; expected text, or a list of texts. "
                "Convert the column, or rename it."
            )
        self.account.add("text", label, len(texts))
        return [{"type": "text", "text": text, "column": label} for text in texts]

    def decode(self, data: bytes, label: str) -> str:
        """Decode a text in UTF-8.

        Raises:
            DocumentError: it is not UTF-8.
        """
        try:
            return data.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise DocumentError(
                f"{self.where}, column {label!r}: byte {error.start} is not UTF-8; expected text in UTF-8. Save it "
                "as UTF-8, or drop the document."
            ) from error

    def _bytes(self, name: str, value: bytes, label: str) -> list[JsonPart]:
        if is_image_name(name) or is_image(value):
            return self._image(label, {"bytes": value})
        try:
            return self._string(name, value.decode(), label)
        except UnicodeDecodeError:
            self._lose(label, "bytes that are neither an image nor UTF-8")
            return []

    def _string(self, name: str, value: str, label: str) -> list[JsonPart]:
        if is_image_name(name):
            return self._image(label, self._image_from_string(value, label))
        if value.startswith("data:image/"):
            return self._image(label, {"base64": value})
        if (encoded := _base64_image(value)) is not None:
            return self._image(label, {"bytes": encoded})
        if _META_NAME.fullmatch(name.lower()) or is_file_name(name) or not _is_prose(name, value):
            self._attribute(label, value)
        else:
            self.attributes[label] = value
            self._lose(label, "text")
        return []

    def _image_from_string(self, value: str, label: str) -> JsonPart:
        if value.startswith("data:"):
            return {"base64": value}
        if "://" in value:
            raise self.web_address(value, label)
        encoded = _base64_image(value)
        return {"path": value} if encoded is None else {"bytes": encoded}

    def web_address(self, value: str, label: str) -> DocumentError:
        """Return the error for an image that is only a web address."""
        return DocumentError(
            f"{self.where}, column {label!r}: the image is a web address, {value[:60]!r}; expected its bytes, or a "
            "path next to the file. Download the images first."
        )

    def _struct(self, name: str, value: dict[str, Any], label: str) -> list[JsonPart]:
        """Return the parts of a struct: an image with what describes it, or nested columns."""
        image, keys = self._image_of_struct(name, value, label)
        rest = {key: item for key, item in value.items() if key not in keys}
        is_meta = _META_NAME.fullmatch(name.lower()) is not None
        parts = self._image(label, image) if image else []
        for key, item in rest.items():
            is_plain = isinstance(item, str) and not is_encoded_image(item)
            if is_meta and is_plain and f"{label}.{key}" not in self.ignored:
                self._attribute(f"{label}.{key}", item)
            else:
                parts += self.column(key, item, f"{label}.{key}")
        return parts

    def _image_of_struct(self, name: str, value: dict[str, Any], label: str) -> tuple[JsonPart, Collection[str]]:
        """Return the image of a struct of `bytes` and `path`, and the keys that it uses."""
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            has_image_type = "path" in value or len(value) == 1
            is_media = isinstance(path, str) and path.lower().endswith(_MEDIA_SUFFIXES)
            if is_image_name(name) or is_image(data) or (has_image_type and not is_media):
                return {"bytes": data}, ("bytes", "path")
        elif (
            "bytes" in value and data is None and isinstance(path, str) and not path.lower().endswith(_MEDIA_SUFFIXES)
        ):
            return self._image_from_string(path, label), ("bytes", "path")
        elif is_image_name(name):
            for key in ("base64", "url", "path", "file_name", "src", "data"):
                if isinstance(value.get(key), str) and value[key]:
                    return self._image_from_string(value[key], f"{label}.{key}"), (key, "type")
        return {}, ()

    def _list(self, name: str, value: list[Any], label: str) -> list[JsonPart]:
        if not any(isinstance(item, bytes | str | dict | list) for item in value) and not is_image_name(name):
            self.account.add("not read", label, reason=type_name(value))
            return []
        parts: list[JsonPart] = []
        for item in value:
            found = self.column(name, item, label) if isinstance(item, bytes | str | dict | list) else []
            if not found and item is not None and is_image_name(name) and not is_empty(item):
                raise DocumentError(
                    f"{self.where}, column {label!r}: found {type_name(item)} among images; expected an image in "
                    "each entry. Remove the entry, or drop the document."
                )
            parts += found
        return parts

    def _image(self, label: str, image: JsonPart) -> list[JsonPart]:
        self.account.add("image", label)
        return [{"type": "image", "column": label, **image}]

    def _attribute(self, label: str, value: Any) -> None:
        if not isinstance(value, str | int | float | Decimal | datetime.date | datetime.time | datetime.timedelta):
            self.account.add("not read", label, reason=type_name(value))
            return
        before = f"{self.attributes[label]}, " if label in self.attributes else ""  # of the same list
        if len(before) > _MAX_LIST_CHARS:
            self.account.add("not read", label, reason="a long list")
            return
        self.attributes[label] = f"{before}{value}"
        self.account.add("attribute", label)

    def _lose(self, label: str, kind: str) -> None:
        self.account.add("left over", label, reason=kind)


def names_image(value: Any) -> bool:
    """Return whether a value is a string that ends like the name of an image file."""
    return isinstance(value, str) and value.lower().split("?")[0].endswith(IMAGE_SUFFIXES)


def web_image(columns: Mapping[str, Any]) -> str | None:
    """Return the column with the web address of an image that was not downloaded, None if none.

    LAION's and DataComp's tables have such a column, and the width and height of the image.
    """
    has_size = any("width" in name.lower() for name in columns)
    for name, value in columns.items():
        is_url = isinstance(value, str) and "://" in value and _URL_NAME.fullmatch(name.lower()) is not None
        if is_url and (has_size or names_image(value) or "im" in name.lower()):
            return name
    return None


def _is_prose(name: str, value: str) -> bool:
    """Return whether a string is text that a model should read, rather than a label or a code."""
    if _TEXT_NAME.fullmatch(name.lower()):
        return any(char.isalpha() for char in value)
    words = sum(_WORD.fullmatch(word) is not None for word in value[:2000].split())
    return words >= _MIN_WORDS or _IDEOGRAPHS.search(value) is not None


def is_encoded_image(value: str) -> bool:
    """Return whether a string is the data URL or the base64 of an image."""
    return value.startswith("data:image/") or _base64_image(value) is not None


def _base64_image(value: str) -> bytes | None:
    """Decode the base64 of an image file; None for any other string."""
    if len(value) < 40 or value.lower().endswith(IMAGE_SUFFIXES):
        return None
    try:
        if image_suffix(base64.b64decode(value[:24])) == ".bin":
            return None
        data = base64.b64decode("".join(value.split()), validate=True)
    except (ValueError, binascii.Error):
        return None
    return data if is_image(data) else None
