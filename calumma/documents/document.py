"""Documents: text and images in reading order, the input format of the whole package.

One document in JSON, with the message format of chat templates:

    {"id": "...", "source": "...", "content": [{"type": "text", "text": "..."},
                                               {"type": "image", "path": "images/1.png"}]}

or, for fine-tuning, turns of the same parts under "messages", each with a "role".
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import PIL.Image

from calumma.documents.column_account import ColumnAccount
from calumma.documents.error_policy import os_error_text
from calumma.documents.image_decoding import open_image, require_header
from calumma.documents.paths import AnyPath, RemotePath, resolve_inside
from calumma.errors import DocumentError, ImageError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
SPECIAL_TOKEN_TYPE = "special_token"


@dataclass(frozen=True)
class Text:
    """A text part; no character is changed."""

    text: str


@dataclass(frozen=True)
class SpecialToken(Text):
    """A part that is one token: one that was added to the tokenizer, named by its text."""


@dataclass(frozen=True)
class Image:
    """An image part: the bytes of an image file, or the path from which they are read.

    Exactly one of `data` and `path` is set.
    """

    data: bytes | None = None
    path: AnyPath | None = None

    name: str = field(default="an image in memory", compare=False)
    """Name in messages of an image without a path: the file, line and part it came from."""

    def __post_init__(self) -> None:
        assert (self.data is None) != (self.path is None), "one of data and path, not both"

    @cached_property
    def cached_bytes(self) -> bytes:
        """The bytes of the file, read once and kept in memory as long as this object.

        Later calls of `read_bytes` and `open` use them; these do not keep the bytes themselves.

        Raises:
            ImageError: the file is missing or cannot be read.
        """
        return self.read_bytes()

    def read_bytes(self) -> bytes:
        """Read the bytes of the image file.

        Raises:
            ImageError: the file is missing or cannot be read.
        """
        if self.data is not None:
            return self.data
        if "cached_bytes" in self.__dict__:
            return self.cached_bytes
        assert self.path is not None
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ImageError(
                f"{self.path}: the image cannot be read ({os_error_text(error)}); expected an "
                "image file at this path. Fix the path, or drop the document."
            ) from error

    def open(self) -> PIL.Image.Image:
        """Decode the image (the first frame of an animation).

        Raises:
            ImageError: the bytes are no image, are truncated, or hold too many pixels.
        """
        return open_image(self.read_bytes(), self.display_name)

    def require_header(self) -> None:
        """Check that the file exists and has a valid header; no pixel is decoded.

        Images at a remote path are not fetched for this.

        Raises:
            ImageError: the file is missing, is no image, or holds too many pixels.
        """
        if not isinstance(self.path, RemotePath):
            require_header(self.read_bytes(), self.display_name)

    @property
    def display_name(self) -> str:
        """The path, or the name of an image without one, for messages."""
        return str(self.path) if self.path is not None else self.name


Part = Text | Image


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document: `content` for plain ones, `messages` for conversations, never both."""

    id: str
    source: str = ""
    license: str = ""
    content: tuple[Part, ...] = ()
    messages: tuple[Turn, ...] = ()

    attributes: Mapping[str, str] = field(default_factory=dict)
    """Metadata, such as {"split": "train"}; never used for training."""

    account: ColumnAccount = field(default_factory=ColumnAccount, compare=False, repr=False)
    """What became of each column of the document's record."""

    def parts(self) -> Iterator[Part]:
        """Yield all parts in reading order, of all turns."""
        yield from self.content
        for turn in self.messages:
            yield from turn.parts

    @property
    def images(self) -> list[Image]:
        """The images in reading order."""
        return [part for part in self.parts() if isinstance(part, Image)]

    @property
    def text(self) -> str:
        """The text parts, joined by line breaks."""
        return "\n".join(part.text for part in self.parts() if isinstance(part, Text))


def document_from_json(record: Any, folder: AnyPath | None, where: str) -> Document:
    """Parse one JSON record.

    Args:
        record: the parsed JSON.
        folder: the folder to which image paths are relative; None if paths are not allowed.
        where: the file and line, for messages.

    Raises:
        DocumentError: the record is not a document, or a path leaves `folder`.
    """
    if not isinstance(record, dict):
        raise DocumentError(
            f"{where}: found {type(record).__name__}; expected an object with "
            '"content" or "messages". See the document format in docs/documents.md.'
        )
    has_content, has_messages = "content" in record, "messages" in record
    if has_content == has_messages:
        found = "both" if has_content else "neither"
        raise DocumentError(
            f'{where}: found {found} of "content" and "messages"; expected exactly one. '
            "Keep the one that holds the parts."
        )
    if "licence" in record:
        raise DocumentError(f'{where}: found the key "licence"; expected "license". Rename the key.')
    attributes = record.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise DocumentError(
            f'{where}: "attributes" is {type(attributes).__name__}; expected an object of names '
            "and values. Fix it, or remove it."
        )
    return Document(
        id=_to_string(where.rpartition("/")[2] if record.get("id") in (None, "") else record["id"]),
        source=_to_string(record.get("source") or ""),
        license=_to_string(record.get("license") or ""),
        content=_parse_parts(record["content"], folder, where) if has_content else (),
        messages=_parse_turns(record["messages"], folder, where) if has_messages else (),
        attributes={_to_string(key): _to_string(value) for key, value in attributes.items()},
    )


def _to_string(value: Any) -> str:
    """Convert a value to a string that UTF-8 can encode; lone surrogates become "?"."""
    return str(value).encode(errors="replace").decode()


def _parse_turns(messages: Any, folder: AnyPath | None, where: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise DocumentError(
            f'{where}: "messages" is no list of turns; expected at least one turn, such as '
            '{"role": "user", "content": [...]}.'
        )
    turns = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise DocumentError(f"{where}: turn {number} has the role {role!r}; expected one of {', '.join(ROLES)}.")
        parts = _parse_parts(message.get("content"), folder, f"{where}, turn {number}")
        turns.append(Turn(role, parts))
    return tuple(turns)


def _parse_parts(content: Any, folder: AnyPath | None, where: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (_parse_text(content, where),)
    if not isinstance(content, list):
        raise DocumentError(
            f"{where}: content is {type(content).__name__}; expected a list of parts, such as "
            '[{"type": "text", "text": "..."}, {"type": "image", "path": "1.png"}].'
        )
    return tuple(part_from_json(part, folder, f"{where}, part {number}") for number, part in enumerate(content))


def part_from_json(part: Any, folder: AnyPath | None, where: str) -> Part:
    """Parse one part of a document; arguments as of `document_from_json`.

    Raises:
        DocumentError: it is of no known type, or its path leaves `folder`.
    """
    if isinstance(part, str):
        return _parse_text(part, where)
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind in ("text", SPECIAL_TOKEN_TYPE):
        if not isinstance(part.get("text"), str):
            raise DocumentError(
                f"{where}: the text of a {kind} part is {type(part.get('text')).__name__}; expected a string. Fix it, "
                "or remove the part."
            )
        text = _parse_text(part["text"], where)
        return text if kind == "text" else SpecialToken(text.text)
    if kind == "image_url":
        url = part.get("image_url")
        return _parse_image({"url": url.get("url") if isinstance(url, dict) else url}, folder, where)
    if kind != "image":
        raise DocumentError(
            f"{where}: found a part of type {kind!r}; expected text, image or "
            f'{SPECIAL_TOKEN_TYPE}, such as {{"type": "text", "text": "..."}}.'
        )
    return _parse_image(part, folder, where)


def _parse_image(part: Any, folder: AnyPath | None, where: str) -> Image:
    inner = part.get("image") or part.get("source")
    if isinstance(inner, dict):  # of `datasets`, or of Anthropic's API
        return _parse_image({"base64": inner.get("data"), **inner}, folder, where)
    data = inner if isinstance(inner, bytes) else part.get("bytes")
    if isinstance(data, bytes):
        return Image(data=data, name=where)
    url = part.get("url") or part.get("image") or part.get("path")
    encoded = part.get("base64")
    if encoded is None and isinstance(url, str) and url.startswith("data:"):
        encoded = url
    if encoded is not None:
        try:
            if isinstance(encoded, str):  # also as a data URL, or with line breaks
                body = encoded.partition(",")[2] if encoded.startswith("data:") else encoded
                encoded = "".join(body.split())
            return Image(data=base64.b64decode(encoded, validate=True), name=where)
        except (ValueError, TypeError) as error:
            raise DocumentError(
                f"{where}: an image's base64 cannot be decoded ({error}); expected plain base64. "
                "Encode the image again."
            ) from error
    if isinstance(url, str) and "://" in url:
        raise DocumentError(
            f"{where}: the image is a web address, {url[:60]!r}; expected a path, base64 or a data "
            "URL. Download the image first."
        )
    if isinstance(url, str):
        return Image(path=_resolve_image_path(folder, url, where))
    raise DocumentError(
        f"{where}: an image without path, bytes or base64; expected one of them. Add it, or remove the part."
    )


def _parse_text(text: str, where: str) -> Text:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"{where}: the text has a lone surrogate at character {error.start} ({text[error.start]!a}); expected "
            "text that UTF-8 can encode. Fix it, or drop the document."
        ) from error
    return Text(text)


def _resolve_image_path(folder: AnyPath | None, path: str, where: str) -> AnyPath:
    if folder is None:
        raise DocumentError(
            f"{where}: image path {path!r} has no folder to start from; expected bytes or base64. "
            "Put the image itself into the part."
        )
    target = resolve_inside(folder, path)
    if target is None:
        raise DocumentError(
            f"{where}: image path {path!r} leads out of {folder}; expected a path inside the "
            "folder of the document's file. Copy the image there."
        )
    return target


def document_to_json(
    document: Document, image_to_json: Callable[[Image], dict[str, str]] | None = None
) -> dict[str, Any]:
    """Convert a document to a JSON record.

    Args:
        document: the document.
        image_to_json: converts an image part; by default to base64.
    """
    image_to_json = image_to_json or _image_to_json
    record: dict[str, Any] = {"id": document.id, "source": document.source}
    if document.license:
        record["license"] = document.license
    if document.attributes:
        record["attributes"] = dict(document.attributes)
    if document.messages:
        record["messages"] = [
            {"role": turn.role, "content": [_part_to_json(part, image_to_json) for part in turn.parts]}
            for turn in document.messages
        ]
    else:
        record["content"] = [_part_to_json(part, image_to_json) for part in document.content]
    return record


def _part_to_json(part: Part, image_to_json: Callable[[Image], dict[str, str]]) -> dict[str, str]:
    return text_to_json(part) if isinstance(part, Text) else image_to_json(part)


def text_to_json(part: Text) -> dict[str, str]:
    """Convert a text part or a special token to JSON."""
    kind = SPECIAL_TOKEN_TYPE if isinstance(part, SpecialToken) else "text"
    return {"type": kind, "text": part.text}


def _image_to_json(image: Image) -> dict[str, str]:
    return {"type": "image", "base64": base64.b64encode(image.read_bytes()).decode()}
