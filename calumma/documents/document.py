"""Documents: text and images in reading order, the shape in which everything enters.

One document in JSON (contract of the project, the shape chat templates use):

    {"id": "...", "source": "...", "content": [{"type": "text", "text": "..."},
                                               {"type": "image", "path": "images/1.png"}]}

or, for fine-tuning, turns of the same parts under "messages", each with a "role".
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import PIL.Image

from calumma.documents.error_policy import os_error_text
from calumma.documents.image_decoding import open_image, require_header
from calumma.documents.paths import AnyPath, RemotePath, resolve_inside
from calumma.errors import DocumentError, ImageError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Text:
    """A run of text, kept to the letter."""

    text: str


@dataclass(frozen=True)
class Image:
    """A picture as the bytes of its file, read when first asked for.

    Exactly one of `data` and `path` is set.
    """

    data: bytes | None = None
    path: AnyPath | None = None

    name: str = field(default="an image in memory", compare=False)
    """What messages call a picture without a path: the file, line and part it came from."""

    def __post_init__(self) -> None:
        assert (self.data is None) != (self.path is None), "one of data and path, not both"

    def read_bytes(self) -> bytes:
        """The bytes of the picture's file.

        Raises:
            ImageError: the file is not there or cannot be read.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ImageError(
                f"{self.path}: no picture can be read there ({os_error_text(error)}); expected an image "
                "file beside the document. Fix the path, or leave the document out."
            ) from error

    def open(self) -> PIL.Image.Image:
        """Decode the picture whole (first frame of an animation).

        Raises:
            ImageError: the bytes are no picture, are cut short, or hold too many pixels.
        """
        return open_image(self.read_bytes(), self._shown_name)

    def require_header(self) -> None:
        """See that the file is there and begins as a picture does; no pixel is decoded.

        What lies at an address is not fetched for this.

        Raises:
            ImageError: it is not there, is no picture, or holds too many pixels.
        """
        if not isinstance(self.path, RemotePath):
            require_header(self.read_bytes(), self._shown_name)

    @property
    def _shown_name(self) -> str:
        return str(self.path) if self.path is not None else self.name


Part = Text | Image


@dataclass(frozen=True)
class Turn:
    """What one side of a conversation says."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document: `content` for plain ones, `messages` for conversations, never both."""

    id: str
    source: str = ""
    licence: str = ""
    content: tuple[Part, ...] = ()
    messages: tuple[Turn, ...] = ()

    attributes: Mapping[str, str] = field(default_factory=dict)
    """Known truths about the document, such as {"ground": "red"}; no room trains on them."""

    def parts(self) -> Iterator[Part]:
        """All parts in reading order, whoever says them."""
        yield from self.content
        for turn in self.messages:
            yield from turn.parts

    @property
    def images(self) -> list[Image]:
        """The pictures in reading order."""
        return [part for part in self.parts() if isinstance(part, Image)]

    @property
    def text(self) -> str:
        """The text parts, one a line."""
        return "\n".join(part.text for part in self.parts() if isinstance(part, Text))


def document_from_json(record: Any, folder: AnyPath | None, where: str) -> Document:
    """Read one record; `folder` is where its image paths start, `where` names it in errors.

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
    attributes = record.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise DocumentError(
            f'{where}: "attributes" is {type(attributes).__name__}; expected an object of names and '
            "values. Fix it, or leave it out."
        )
    return Document(
        id=_label(record.get("id") or where.rpartition("/")[2]),
        source=_label(record.get("source") or ""),
        licence=_label(record.get("licence") or ""),
        content=_parts(record["content"], folder, where) if has_content else (),
        messages=_turns(record["messages"], folder, where) if has_messages else (),
        attributes={_label(key): _label(value) for key, value in attributes.items()},
    )


def _label(value: Any) -> str:
    """A value as a string that UTF-8 can hold; what it cannot hold becomes "?"."""
    return str(value).encode(errors="replace").decode()


def _turns(messages: Any, folder: AnyPath | None, where: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise DocumentError(
            f'{where}: "messages" is no list of turns; expected at least one turn, such as '
            '{"role": "user", "content": [...]}.'
        )
    turns = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise DocumentError(
                f"{where}: turn {number} has the role {role!r}; expected one of {', '.join(ROLES)}."
            )
        turns.append(Turn(role, _parts(message.get("content"), folder, f"{where}, turn {number}")))
    return tuple(turns)


def _parts(content: Any, folder: AnyPath | None, where: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (_text(content, where),)
    if not isinstance(content, list):
        raise DocumentError(
            f"{where}: content is {type(content).__name__}; expected a list of parts, such as "
            '[{"type": "text", "text": "..."}, {"type": "image", "path": "1.png"}].'
        )
    return tuple(
        part_from_json(part, folder, f"{where}, part {number}")
        for number, part in enumerate(content)
    )


def part_from_json(part: Any, folder: AnyPath | None, where: str) -> Part:
    """Read one part of a document.

    Raises:
        DocumentError: it is neither text nor image, or its path leaves `folder`.
    """
    if isinstance(part, str):
        return _text(part, where)
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return _text(part["text"], where)
    if kind != "image":
        raise DocumentError(
            f"{where}: found a part of type {kind!r}; expected text or image, such as "
            '{"type": "text", "text": "..."}.'
        )
    if isinstance(part.get("bytes"), bytes):
        return Image(data=part["bytes"], name=where)
    if part.get("base64") is not None:
        try:
            return Image(data=base64.b64decode(part["base64"], validate=True), name=where)
        except (ValueError, TypeError) as error:
            raise DocumentError(
                f"{where}: an image's base64 cannot be decoded ({error}); expected plain base64. "
                "Encode the picture again."
            ) from error
    if isinstance(part.get("path"), str):
        return Image(path=_inside(folder, part["path"], where))
    raise DocumentError(
        f"{where}: an image without path, bytes or base64; expected one of them. Add it, or leave "
        "the part out."
    )


def _text(text: str, where: str) -> Text:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"{where}: the text has half a character at place {error.start} (a lone surrogate, "
            f"{text[error.start]!a}); expected text that UTF-8 can hold. Fix it, or leave the "
            "document out."
        ) from error
    return Text(text)


def _inside(folder: AnyPath | None, path: str, where: str) -> AnyPath:
    if folder is None:
        raise DocumentError(
            f"{where}: image path {path!r} has no folder to start from; expected bytes or base64. "
            "Put the picture itself into the part."
        )
    target = resolve_inside(folder, path)
    if target is None:
        raise DocumentError(
            f"{where}: image path {path!r} leads out of {folder}; expected a path inside the folder "
            "of the document's file. Copy the picture there."
        )
    return target


def document_to_json(
    document: Document, image_to_json: Callable[[Image], dict[str, str]] | None = None
) -> dict[str, Any]:
    """The JSON record of a document; pictures become base64, or what `image_to_json` says."""
    image_to_json = image_to_json or _image_to_json
    record: dict[str, Any] = {"id": document.id, "source": document.source}
    if document.licence:
        record["licence"] = document.licence
    if document.attributes:
        record["attributes"] = dict(document.attributes)
    if document.messages:
        record["messages"] = [
            {
                "role": turn.role,
                "content": [_part_to_json(part, image_to_json) for part in turn.parts],
            }
            for turn in document.messages
        ]
    else:
        record["content"] = [_part_to_json(part, image_to_json) for part in document.content]
    return record


def _part_to_json(part: Part, image_to_json: Callable[[Image], dict[str, str]]) -> dict[str, str]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return image_to_json(part)


def _image_to_json(image: Image) -> dict[str, str]:
    return {"type": "image", "base64": base64.b64encode(image.read_bytes()).decode()}
