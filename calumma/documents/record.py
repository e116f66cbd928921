"""Conversion of a record (a row, a JSON line, the JSON of a tar sample) to a document.

A record is a dictionary of columns. Every reader of records uses this module, so that the same
columns give the same document in Parquet, JSON Lines, saved datasets and tar files. The shapes that
are read are listed in docs/documents.md.

Nothing is dropped silently: each image must have a slot in the document, and a known column with
a value of another type is an error that names it.
"""

import base64
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from calumma.documents.document import Document, document_from_json
from calumma.documents.image_formats import IMAGE_SUFFIXES, image_suffix
from calumma.documents.obelics import IMAGES, TEXTS, interleave, is_obelics_record
from calumma.documents.paths import AnyPath
from calumma.errors import DocumentError

TEXT_COLUMNS = ("text", "caption", "captions", "title", "description", "prompt", "alt")
"""Names of flat columns that are text of the document; others are attributes."""

IMAGE_COLUMNS = ("image", "images", "img", "jpg", "jpeg", "png", "webp")
"""Names of columns whose strings are images (a path, a data URL or base64) and whose bytes are
images even if they do not begin like one."""

TURN_COLUMNS = ("conversations", "conversation", "question", "answer", "answers")
"""Names of columns that are turns of a conversation."""

FILE_NAME_COLUMN = "file_name"
"""The column of imagefolder's metadata that names an image next to it."""

_PART_COLUMNS = ("content", "messages")
_FIELDS = ("id", "source", "license")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
_MARK = re.compile(r"\n?<image>\n?")

KNOWN_COLUMNS = frozenset({*TEXT_COLUMNS, *IMAGE_COLUMNS, *TURN_COLUMNS, *_PART_COLUMNS, FILE_NAME_COLUMN})
"""Names of the columns that can make a document of a record."""

_Part = dict[str, Any]


def document_from_record(record: Any, folder: AnyPath | None, where: str) -> Document:
    """Convert a record to a document.

    Args:
        record: the columns; anything but a dictionary is refused.
        folder: the folder to which image paths are relative; None if paths are not allowed.
        where: the file and row, for messages.

    Raises:
        DocumentError: the record is not a document, or an image has no slot in it.
    """
    if isinstance(record, dict):
        record = normalize_record(record, where)
    return document_from_json(record, folder, where)


def normalize_record(record: Mapping[str, Any], where: str, images: Iterable[_Part] = ()) -> dict[str, Any]:
    """Convert a record to the JSON of a document: `content` or `messages`.

    Args:
        record: the columns.
        where: the file and row, for messages.
        images: further image parts, such as the members of a tar sample.

    Raises:
        DocumentError: the images do not fit the parts, or a column has an unexpected type.
    """
    made = {name: record[name] for name in _FIELDS if record.get(name) is not None}
    if isinstance(record.get("attributes"), list):  # a column of Arrow's map type
        made["attributes"] = _pairs(record["attributes"])
    elif record.get("attributes") is not None:
        made["attributes"] = record["attributes"]
    given = {name: record[name] for name in _PART_COLUMNS if record.get(name) is not None}
    columns = {n: v for n, v in record.items() if n not in (*_FIELDS, *given, "attributes")}
    if given:
        if "licence" in record:  # refused with the new name
            made["licence"] = record["licence"]
        found = [*images, *_other_images(columns, where)]
        has_column = bool(found) or any(name in IMAGE_COLUMNS for name in columns)
        return made | {n: _fill_slots(v, found, where, has_column) for n, v in given.items()}
    turns = _turns(columns, where)
    if turns is not None:
        return made | {"messages": _turns_with_images(turns, columns, images, where)}
    return _flat_document(made, columns, images, where)


def is_structured(record: Mapping[str, Any], where: str) -> bool:
    """Return whether a record has parts or turns, rather than flat columns.

    Raises:
        DocumentError: a column of turns has an unexpected type.
    """
    has_parts = any(record.get(name) is not None for name in _PART_COLUMNS)
    return has_parts or is_obelics_record(record) or _turns(record, where) is not None


def _flat_document(
    made: dict[str, Any], columns: dict[str, Any], images: Iterable[_Part], where: str
) -> dict[str, Any]:
    parts: list[_Part] = [*images]
    if is_obelics_record(columns):
        parts += interleave(columns.pop(TEXTS), columns.pop(IMAGES), where)
    elif isinstance(columns.get(TEXTS), list) and isinstance(columns.get(IMAGES), list):
        raise DocumentError(
            f"{where}: texts has {len(columns[TEXTS])} entries and images {len(columns[IMAGES])}; "
            "expected lists of one length, with null where the other list has the part. Fix the "
            "lists, or drop the document."
        )
    elif isinstance(columns.get("text_list"), list) and "image_info" in columns:
        parts += _mmc4_parts(columns.pop("text_list"), columns.pop("image_info"), where)
    flat = list(_flat_parts(columns, where))
    parts += flat
    name = columns.get(FILE_NAME_COLUMN)
    names_image = isinstance(name, str) and name.lower().endswith(IMAGE_SUFFIXES)
    if names_image and not any(part["type"] == "image" for part in parts):
        parts.insert(0, {"type": "image", "path": name})
        made.setdefault("id", name)
        del columns[FILE_NAME_COLUMN]
    if not parts and not KNOWN_COLUMNS & columns.keys():
        values = columns.values()
        if None not in values or any(isinstance(value, bytes) for value in values):
            raise DocumentError(
                f"{where}: the columns are {', '.join(columns) or 'none'}; expected content or "
                f"messages, an image, or one of {', '.join(TEXT_COLUMNS)}. Rename the column that "
                "holds the text."
            )
    attributes = made.get("attributes", {})
    if isinstance(attributes, dict):
        plain = {
            name: str(value)
            for name, value in columns.items()
            if isinstance(value, str | int | float)
            and name not in TEXT_COLUMNS
            and not (name in IMAGE_COLUMNS and isinstance(value, str))
        }
        attributes = attributes | plain
    return made | {"content": parts, "attributes": attributes}


def _pairs(value: list[Any]) -> Any:
    """Convert the pairs of Arrow's map type to a dictionary; return anything else unchanged."""
    is_map = value and all(isinstance(item, tuple) and len(item) == 2 for item in value)
    return dict(value) if is_map else value


def _flat_parts(columns: Mapping[str, Any], where: str) -> Iterator[_Part]:
    """Yield the image and text parts of columns, in their order."""
    for name, value in columns.items():
        if name in TEXT_COLUMNS:
            for text in _texts(name, value, where):
                yield {"type": "text", "text": text}
        else:
            yield from _image_parts(name, value, where)


def _texts(name: str, value: Any, where: str) -> list[str]:
    """Return the texts of a text column: a string, a list of them, or one for each language."""
    if value is None or value != value:  # NaN: an empty cell of pandas
        return []
    if isinstance(value, str):
        return [value]
    items = list(value.values()) if isinstance(value, dict) else value
    if isinstance(items, list):
        items = [item[1] if isinstance(item, tuple) else item for item in items]
        if all(item is None or isinstance(item, str) for item in items):
            return [item for item in items if item is not None]
    raise DocumentError(
        f"{where}, column {name!r}: found {_type_name(value)}; expected text, or a list of texts. "
        "Convert the column, or rename it."
    )


def _type_name(value: Any) -> str:
    if isinstance(value, list) and value:
        return f"a list of {type(value[0]).__name__}"
    return type(value).__name__


def _image_parts(name: str, value: Any, where: str) -> list[_Part]:
    """Return the parts of a column that holds images, with the texts in their struct.

    Empty if the column holds none.
    """
    if isinstance(value, bytes):
        is_image = name in IMAGE_COLUMNS or image_suffix(value) != ".bin"
        return [{"type": "image", "bytes": value}] if is_image else []
    if isinstance(value, str):
        return [_image_from_string(value, f"{where}, column {name!r}")] * (name in IMAGE_COLUMNS)
    if isinstance(value, dict):
        if {"bytes", "path"} <= value.keys() or isinstance(value.get("bytes"), bytes):
            rest = {key: item for key, item in value.items() if key in TEXT_COLUMNS}
            part = {"type": "image", "bytes": value["bytes"], "path": value.get("path")}
            return [part, *_flat_parts(rest, where)]
        parts = list(_flat_parts({k: v for k, v in value.items() if k != FILE_NAME_COLUMN}, where))
        return parts if any(part["type"] == "image" for part in parts) else []
    if not isinstance(value, list):
        return []
    items = [(item, _image_parts(name, item, where)) for item in value if item is not None]
    if any(parts for _, parts in items):
        for item, parts in items:
            if not parts:
                raise DocumentError(
                    f"{where}, column {name!r}: found {type(item).__name__} among images; "
                    "expected an image in each entry. Remove the entry, or drop the document."
                )
    return [part for _, parts in items for part in parts]


def _image_from_string(value: str, where: str) -> _Part:
    if value.startswith("data:"):
        return {"type": "image", "base64": value}
    if "://" in value:
        raise DocumentError(
            f"{where}: the image is a web address, {value[:60]!r}; expected its bytes, or a path "
            "next to the file. Download the images first."
        )
    try:
        begins_as_image = image_suffix(base64.b64decode(value[:24])) != ".bin"
    except ValueError:
        begins_as_image = False
    if begins_as_image and not value.lower().endswith(IMAGE_SUFFIXES):
        return {"type": "image", "base64": value}
    return {"type": "image", "path": value}


def _other_images(columns: Mapping[str, Any], where: str) -> list[_Part]:
    """Return the image parts of all columns but `content`, `messages` and turns."""
    rest = {name: v for name, v in columns.items() if name not in (*TEXT_COLUMNS, *TURN_COLUMNS)}
    return [part for part in _flat_parts(rest, where) if part["type"] == "image"]


def _fill_slots(value: Any, images: list[_Part], where: str, has_column: bool) -> Any:
    """Put images into the empty image parts and `<image>` marks, in reading order.

    Raises:
        DocumentError: there are more or fewer images than slots.
    """
    if not has_column:
        return value
    num_slots = _count_slots(value)
    if num_slots != len(images):
        raise DocumentError(
            f"{where}: {len(images)} images for {num_slots} slots (<image> marks and "
            "image parts without an image); expected as many slots as images. Fix the row, or "
            "drop the document."
        )
    return _fill_each(value, iter(images)) if images else value


def _is_slot(value: Any) -> bool:
    """Return whether a part is an image part without an image."""
    return (
        isinstance(value, dict)
        and value.get("type") == "image"
        and not any(value.get(key) for key in ("path", "base64", "url", "image"))
        and value.get("bytes") is None
    )


def _count_slots(value: Any) -> int:
    if isinstance(value, str):
        return len(_MARK.findall(value))
    if isinstance(value, list):
        return sum(map(_count_slots, value))
    if not isinstance(value, dict):
        return 0
    return int(_is_slot(value)) or sum(_count_slots(value.get(key)) for key in ("content", "text"))


def _fill_each(value: Any, images: Iterator[_Part]) -> Any:
    if isinstance(value, str):
        return _split_marks(value, images) if _MARK.search(value) else value
    if isinstance(value, list):
        filled: list[Any] = []
        for item in value:
            new = _fill_each(item, images)
            # A text with marks becomes several parts.
            filled.extend(new) if isinstance(new, list) else filled.append(new)
        return filled
    if not isinstance(value, dict):
        return value
    if _is_slot(value):
        return next(images)
    if isinstance(value.get("text"), str) and _MARK.search(value["text"]):
        return _split_marks(value["text"], images)
    if "content" in value:
        return value | {"content": _fill_each(value["content"], images)}
    return value


def _split_marks(text: str, images: Iterator[_Part]) -> list[_Part]:
    """Split a text at its marks; one line break on each side belongs to the mark."""
    chunks = _MARK.split(text)
    parts: list[_Part] = []
    for number, chunk in enumerate(chunks):
        parts += [next(images)] if number else []
        parts += [{"type": "text", "text": chunk}] if chunk else []
    return parts


def _turns(columns: Mapping[str, Any], where: str) -> list[Any] | None:
    """Return the turns of a record without `messages`, None if it has none."""
    for name in ("conversations", "conversation"):
        if columns.get(name) is not None:
            return _conversation(name, columns[name], where)
    texts = columns.get(TEXTS)
    if isinstance(texts, list) and texts and all(map(_is_cauldron_pair, texts)):
        pairs = (_question_and_answer(pair["user"], pair["assistant"]) for pair in texts)
        return list(itertools.chain.from_iterable(pairs))
    answer = columns.get("answer")
    answers = columns.get("answers")
    if answer is None and isinstance(answers, list) and answers:
        given = [a.get("answer") if isinstance(a, dict) else a for a in answers]
        if all(isinstance(each, str) for each in given):
            answer = Counter(given).most_common(1)[0][0]
    question = columns.get("question")
    if isinstance(question, str) and isinstance(answer, str):
        return _question_and_answer(question, answer)
    for name, value in (("question", question), ("answer", answer)):
        if question is not None and answer is not None and not isinstance(value, str):
            raise DocumentError(
                f"{where}, column {name!r}: found {_type_name(value)}; expected text. Convert the "
                "column, or rename it."
            )
    return None


def _is_cauldron_pair(value: Any) -> bool:
    return isinstance(value, dict) and {"user", "assistant"} <= value.keys()


def _question_and_answer(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _conversation(name: str, value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise DocumentError(
            f"{where}, column {name!r}: found {_type_name(value)}; expected a list of turns, such "
            'as {"from": "human", "value": "..."}. Convert the column, or rename it.'
        )
    turns = []
    for turn in value:
        role = turn.get("from", turn.get("role"))
        role = _ROLES.get(role, role) if isinstance(role, str) else role
        turns.append({"role": role, "content": turn.get("value", turn.get("content"))})
    return turns


def _turns_with_images(turns: list[Any], columns: Mapping[str, Any], images: Iterable[_Part], where: str) -> list[Any]:
    """Put the images at their marks, or before the first question if its shape has no marks."""
    found = [*images, *_other_images(columns, where)]
    has_column = bool(found) or any(name in IMAGE_COLUMNS for name in columns)
    has_marks = "conversations" in columns or "conversation" in columns or _count_slots(turns)
    if has_marks or not found:
        filled: list[Any] = _fill_slots(turns, found, where, has_column)
        return filled
    first = turns[0] | {"content": [*found, {"type": "text", "text": turns[0]["content"]}]}
    return [first, *turns[1:]]


def _mmc4_parts(texts: list[Any], infos: Any, where: str) -> list[_Part]:
    """Merge the two lists of MMC4: an image comes before the text that it matches."""
    by_index: dict[int, list[_Part]] = {}
    for info in infos or []:
        index = info.get("matched_text_index") if isinstance(info, dict) else None
        name = info.get("image_name") if isinstance(info, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(texts) or not isinstance(name, str):
            raise DocumentError(
                f"{where}, column 'image_info': found {str(info)[:60]!r}; expected the image_name "
                f"of a file and a matched_text_index below {len(texts)}. Fix it, or drop the "
                "document."
            )
        by_index.setdefault(index, []).append({"type": "image", "path": name})
    parts: list[_Part] = []
    for index, text in enumerate(texts):
        parts += by_index.get(index, [])
        parts.append({"type": "text", "text": text})
    return parts
