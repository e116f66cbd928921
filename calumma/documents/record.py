"""Conversion of a record (a row, a JSON line, a tar sample) to a document.

A record is a dictionary of columns. Every reader of records uses this module, so that the same
columns give the same document in Parquet, JSON Lines, saved datasets and tar files. The shapes that
are read are listed in docs/documents.md.

Nothing is dropped silently: each image must have a slot in the document, a known column with a
value of another type is an error that names it, and the document's account counts every value.
"""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from calumma.documents.document import Document, document_from_json
from calumma.documents.image_slots import count_slots, fill_slots
from calumma.documents.obelics import IMAGES, TEXTS, interleave, is_obelics_record, mmc4_parts
from calumma.documents.paths import AnyPath
from calumma.documents.record_columns import (
    TEXT_COLUMNS,
    ColumnReader,
    JsonPart,
    is_empty,
    is_encoded_image,
    is_file_name,
    is_image_name,
    is_text_name,
    names_image,
    web_image,
)
from calumma.documents.turn_columns import (
    ANSWER_COLUMNS,
    CONVERSATION_COLUMNS,
    QUESTION_COLUMNS,
    have_marks,
    normalize_turns,
    take_turns,
)
from calumma.errors import DocumentError

_PART_COLUMNS = ("content", "messages")
_FIELDS = ("id", "source", "license")
_JSON, _KEY = "json", "__key__"
"""Columns of a WebDataset that was exported to a table."""

_TEXT_KEYS = {"type", "text", "index"}
_IMAGE_KEYS = {"type", "bytes", "path", "base64", "url", "image", "image_url", "source", "index"}
_TURN_KEYS = {"role", "content", "column", "weight"}


def is_known_column(name: str) -> bool:
    """Return whether a column of this name can make a document of a record."""
    lower = name.lower()
    known = (*_PART_COLUMNS, *CONVERSATION_COLUMNS, *QUESTION_COLUMNS, *ANSWER_COLUMNS, _JSON, TEXTS, "text_list")
    return lower in known or any(is_kind(lower) for is_kind in (is_text_name, is_image_name, is_file_name))


def document_from_record(
    record: Any,
    folder: AnyPath | None,
    where: str,
    *,
    default_id: str = "",
    ignored: Collection[str] = (),
    members: Mapping[str, Any] | None = None,
) -> Document:
    """Convert a record to a document.

    Args:
        record: the columns; anything but a dictionary is refused.
        folder: the folder to which image paths are relative; None if paths are not allowed.
        where: the file and row, for messages.
        default_id: the id of a record without one.
        ignored: columns that are not read.
        members: members of a tar sample by the name after the stem: they come before the columns.

    Raises:
        DocumentError: the record is not a document, or an image has no slot in it.
    """
    if not isinstance(record, dict):
        return document_from_json(record, folder, where)
    reader = ColumnReader(where, ignored)
    try:
        document = document_from_json(_normalize(record, reader, default_id, members), folder, where)
    except RecursionError as error:
        raise DocumentError(
            f"{where}: nested too deeply; expected a document of a few levels. Fix the record, or drop the document."
        ) from error
    return dataclasses.replace(document, account=reader.account)


def _normalize(
    record: dict[str, Any], reader: ColumnReader, default_id: str, members: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Convert a record to the JSON of a document: `content` or `messages`."""
    columns = {name: value for name, value in record.items() if name not in reader.ignored}
    for name in record:
        reader.account.add("not read", name, 0 if name in columns else 1, "ignored")
    if members is None:
        columns, members = _split_members(columns, reader)
    made = _take_fields(columns, reader)
    body = _take_parts(columns, members, reader) or _flat_document(columns, members, reader)
    attributes = made.get("attributes") or {}
    if isinstance(attributes, dict):
        made["attributes"] = attributes | reader.attributes
    return {"id": default_id} | body | made


def _split_members(columns: dict[str, Any], reader: ColumnReader) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a row of an exported WebDataset into the columns of its JSON and the other members."""
    if _KEY not in columns and not isinstance(columns.get(_JSON), dict | bytes):
        return columns, {}
    members = dict(columns)
    found = members.pop(_JSON, None)
    if isinstance(found, bytes | str):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise DocumentError(
                f"{reader.where}, column {_JSON!r}: not JSON ({error}); expected an object. Fix it, or drop the "
                "document."
            ) from error
    if not isinstance(found, dict):
        return columns, {}
    fields = {name: members.pop(name) for name in (*_FIELDS, _KEY) if name in members}
    return fields | {name: value for name, value in found.items() if name not in fields}, members


def _take_fields(columns: dict[str, Any], reader: ColumnReader) -> dict[str, Any]:
    """Remove the fields of a document from the columns and return them."""
    made: dict[str, Any] = {}
    for name in (*_FIELDS, _KEY):
        value = columns.get(name)
        # A list, bytes or an image is a column like any other.
        is_second = name == _KEY and "id" in made
        is_encoded = isinstance(value, str) and is_encoded_image(value)
        if isinstance(value, str | int | float) and not is_encoded and not is_second:
            del columns[name]
            if value != "":
                made.setdefault("id" if name == _KEY else name, value)
                reader.account.add("field", name)
    attributes = columns.pop("attributes", None)
    if isinstance(attributes, list) and all(isinstance(item, tuple) for item in attributes):
        attributes = dict(attributes)  # Arrow's map type
    if attributes is not None:
        made["attributes"] = attributes
        reader.account.add("attribute", "attributes", len(attributes) if isinstance(attributes, dict) else 1)
    if "licence" in columns:  # refused with the new name
        made["licence"] = columns.pop("licence")
    return made


def _take_parts(columns: dict[str, Any], members: Mapping[str, Any], reader: ColumnReader) -> dict[str, Any] | None:
    """Remove the parts or turns of a record and return them with all images; None if it is flat."""
    given = {name: columns.pop(name) for name in _PART_COLUMNS if columns.get(name) is not None}
    needs_slots = bool(given) or have_marks(columns)
    if "messages" in given:
        given["messages"] = normalize_turns(given["messages"])
    if not given:
        turns = take_turns(columns, reader)
        if turns is None:
            return None
        given = {"messages": turns}
    for name, value in given.items():
        _count_parts(name, value, reader)
    has_column = bool(members) or any(is_image_name(name) or is_file_name(name) for name in columns)
    others = _read_columns(columns, members, reader)
    images = [part for part in others if part["type"] == "image"]
    _account_for_texts(given, [part for part in others if part["type"] == "text"], reader)
    num_slots = sum(map(count_slots, given.values()))
    if images and not num_slots and not needs_slots:
        first, *turns = given["messages"]
        return {"messages": [first | {"content": [*images, first["content"]]}, *turns]}
    if images or (num_slots and (has_column or any(map(_has_mark, given.get("messages") or ())))):
        return {name: fill_slots(value, images, reader.where) for name, value in given.items()}
    return given


def _has_mark(turn: Any) -> bool:
    """Return whether a turn is one string with an `<image>` mark, as other tools write them."""
    return isinstance(turn, dict) and isinstance(turn.get("content"), str) and count_slots(turn["content"]) > 0


def _count_parts(label: str, value: Any, reader: ColumnReader) -> None:
    """Account for parts or turns: their texts and images, and what else they hold."""
    if isinstance(value, list):
        for item in value:
            _count_parts(label, item, reader)
    elif isinstance(value, str):
        reader.account.add("text", label)
    elif isinstance(value, dict):
        if "role" in value:
            used, label = _TURN_KEYS, value.get("column") or label
            _count_parts(label, value.get("content"), reader)
        elif value.get("type") in ("image", "image_url"):
            used = _IMAGE_KEYS
            reader.account.add("image", label, 1 - count_slots(value))
        else:
            used = _TEXT_KEYS
            reader.account.add("text", label)
        for key in value:
            if key not in used and not is_empty(value[key]):
                reader.left_over(f"{label}.{key}", value[key])


def _account_for_texts(given: Mapping[str, Any], texts: list[JsonPart], reader: ColumnReader) -> None:
    """Account for texts next to parts or turns: those that these do not repeat are left over."""
    known = "\n".join(_strings(list(given.values())))
    for part in texts:
        if part["text"].strip() not in known:
            reader.account.add("text", part["column"], -1)
            reader.account.add("left over", part["column"], reason="text")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(item)


def _read_columns(
    columns: Mapping[str, Any], members: Mapping[str, Any], reader: ColumnReader, *, is_flat: bool = False
) -> list[JsonPart]:
    """Return the images and texts of members and columns, in their order."""
    parts: list[JsonPart] = []
    for name, value in members.items():
        suffix = name.rpartition(".")[2].lower()
        parts += reader.column(suffix, value)
    repeated = {part["text"].strip() for part in parts if part["type"] == "text"}
    has_images = any(part["type"] == "image" for part in parts)
    file_names: dict[str, Any] = {}
    for name, value in columns.items():
        if is_file_name(name) or (has_images and is_image_name(name) and _holds_names(value)):
            file_names[name] = value
            continue
        is_text = is_flat and name in QUESTION_COLUMNS  # without an answer
        for part in reader.column("text" if is_text else name, value, name):
            if not (part["type"] == "text" and part["text"].strip() in repeated):
                parts.append(part)
    has_images = any(part["type"] == "image" for part in parts)
    return _named_images(file_names, has_images, columns, reader) + parts


def _holds_names(value: Any) -> bool:
    """Return whether a value is the name of a file, or a list of them."""
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, str) and (names_image(item) or len(item.split()) == 1) for item in items)


def _named_images(
    file_names: Mapping[str, Any], has_images: bool, columns: Mapping[str, Any], reader: ColumnReader
) -> list[JsonPart]:
    """Return the images that columns of file names name; if there are others, they are attributes."""
    parts: list[JsonPart] = []
    for name, value in file_names.items():
        items = value if isinstance(value, list) else [value]
        if not has_images and not parts and any(map(names_image, items)):
            parts += reader.column("images", value, name)
        else:
            parts += reader.column("file_name", value, name)
    address = None if has_images or parts else web_image(columns)
    if address is not None:
        raise reader.web_address(columns[address], address)
    return parts


def _flat_document(columns: dict[str, Any], members: Mapping[str, Any], reader: ColumnReader) -> dict[str, Any]:
    parts: list[JsonPart] = []
    texts, images = columns.get(TEXTS), columns.get(IMAGES)
    if is_obelics_record(columns):
        parts += interleave(columns.pop(TEXTS), columns.pop(IMAGES), reader.where)
    elif isinstance(texts, list) and isinstance(images, list):
        raise DocumentError(
            f"{reader.where}: texts has {len(texts)} entries and images {len(images)}; expected lists of one length, "
            "with null where the other list has the part. Fix the lists, or drop the document."
        )
    elif isinstance(columns.get("text_list"), list) and "image_info" in columns:
        parts += mmc4_parts(columns.pop("text_list"), columns.pop("image_info"), reader.where)
    for part in parts:
        reader.account.add("image" if part["type"] == "image" else "text", part["column"])
    others = _read_columns(columns, members, reader, is_flat=True)
    parts += others
    if not parts:
        if not any(map(is_known_column, columns)) and not members:
            raise DocumentError(
                f"{reader.where}: the columns are {', '.join(columns) or 'none'}; expected content or messages, an "
                f"image, or one of {', '.join(TEXT_COLUMNS)}. Rename the column that holds the text."
            )
        raise DocumentError(
            f"{reader.where}: no image and no text in {', '.join([*members, *columns])}; expected at least one. Fill "
            "the columns, or drop the document."
        )
    made: dict[str, Any] = {"content": parts}
    if others and "path" in others[0] and isinstance(columns.get("file_name"), str):
        made["id"] = columns["file_name"]
    return made
