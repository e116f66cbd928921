"""Documents from tar files in WebDataset's manner: members that share a stem are one document.

    0001.jpg  0001.txt            an image and its caption
    0002.png  0002.json           an image, and a JSON object
    0003.a.png 0003.b.png 0003.json   images that the JSON's parts name, as "a.png" or in full

The stem is the member's name up to the first dot of its last part. Members of a document stand
next to each other, as WebDataset wants it; the archive is read once, from front to back.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calumma.documents.document import Document, document_from_json
from calumma.documents.error_policy import OnError, stop, unreadable_file_error
from calumma.documents.image_formats import IMAGE_SUFFIXES
from calumma.documents.paths import AnyPath
from calumma.errors import DocumentError

_TEXT_KEYS = ("text", "caption")


@dataclass
class _Group:
    """What the archive holds under one stem: the members' bytes by what follows the stem."""

    stem: str
    members: dict[str, bytes] = field(default_factory=dict)

    def ending(self, *suffixes: str) -> dict[str, bytes]:
        """The members whose names end so, in the order of the archive."""
        return {k: v for k, v in self.members.items() if f".{k}".lower().endswith(suffixes)}


def read_tar(
    path: AnyPath, on_error: OnError = stop, *, offset: int = 0, count: int | None = None
) -> Iterator[Document]:
    """Read the documents of one tar file: images first, in the order of the archive, then text.

    Args:
        path: the file.
        on_error: what is done about members that are no document.
        offset: where to begin, in bytes: one of the places that `tar_offsets` tells.
        count: how many documents; None for all that follow.

    Raises:
        DocumentError: the archive cannot be read or is cut short, or a group is no document.
    """
    try:
        with path.open("rb") as file:
            if offset:
                file.seek(offset)
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for group in itertools.islice(_groups(archive), count):
                    try:
                        yield _document(group, path)
                    except DocumentError as error:
                        on_error(error)
    except (tarfile.TarError, EOFError) as error:
        on_error(
            DocumentError(
                f"{path}: no whole tar archive ({error}); expected a WebDataset .tar, not "
                "compressed. Copy or write the file again."
            )
        )
    except OSError as error:
        raise unreadable_file_error(path, error, "a WebDataset .tar") from error


def tar_offsets(path: Path) -> list[int]:
    """Where each document of a tar file of this machine begins, in bytes.

    The headers alone are read. Empty where one holds for all members that stand after it.

    Raises:
        tarfile.TarError, OSError: the archive is not whole.
    """
    offsets: list[int] = []
    last = ""
    with tarfile.open(path, "r:") as archive:
        for member in _members(archive):
            if archive.pax_headers:
                return []
            if member.isfile():
                stem, _ = _stem_and_key(member.name)
                if stem != last or not offsets:
                    offsets.append(member.offset)
                last = stem
    return offsets


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in order; the archive itself would remember them all."""
    for member in archive:
        yield member
        archive.members = []  # type: ignore[attr-defined]  # left out of the types, not of Python


def _stem_and_key(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    stem, _, key = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), key


def _groups(archive: tarfile.TarFile) -> Iterator[_Group]:
    group: _Group | None = None
    for member in _members(archive):
        file = archive.extractfile(member) if member.isfile() else None
        if file is None:
            continue
        stem, key = _stem_and_key(member.name)
        if group is not None and group.stem != stem:
            yield group
            group = None
        group = group or _Group(stem)
        group.members[key] = file.read()
    if group is not None:
        yield group


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{where}: byte {error.start} is not UTF-8; expected text in UTF-8. Save it as UTF-8, or "
            "leave the document out."
        ) from error


def _document(group: _Group, archive: AnyPath) -> Document:
    where = f"{archive}, {group.stem}"
    record = _record(group, where)
    if "content" in record or "messages" in record:
        return document_from_json(_with_images(record, group), None, where)
    images = group.ending(*IMAGE_SUFFIXES).values()
    parts: list[dict[str, Any]] = [{"type": "image", "bytes": data} for data in images]
    text = next((_utf8(v, f"{where}.{k}") for k, v in group.ending(".txt", ".caption").items()), "")
    text = text or next((record[k] for k in _TEXT_KEYS if isinstance(record.get(k), str)), "")
    if text.strip():
        parts.append({"type": "text", "text": text.strip()})
    if not parts:
        raise DocumentError(
            f"{where}: neither image nor text; expected a member that ends in .txt, .json or one of "
            f"{' '.join(IMAGE_SUFFIXES)}. Rename the members, or leave the document out."
        )
    known = {key: record[key] for key in ("id", "source", "licence") if key in record}
    attributes = {
        key: str(value)
        for key, value in record.items()
        if key not in (*known, *_TEXT_KEYS) and isinstance(value, str | int | float)
    }
    shaped = {"content": parts, "attributes": attributes}
    return document_from_json({"id": group.stem} | known | shaped, None, where)


def _record(group: _Group, where: str) -> dict[str, Any]:
    """The object of the group's .json member, empty where there is none."""
    for key, data in group.ending(".json").items():
        try:
            record = json.loads(_utf8(data, f"{where}.{key}"))
        except json.JSONDecodeError as error:
            raise DocumentError(
                f"{where}.{key}: no JSON ({error.msg}, line {error.lineno}); expected an object. "
                "Fix it, or leave the document out."
            ) from error
        return record if isinstance(record, dict) else {}
    return {}


def _with_images(record: dict[str, Any], group: _Group) -> dict[str, Any]:
    """The record with the bytes of members in place of the paths that name them."""

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.get("type") == "image" and isinstance(value.get("path"), str):
            data = _member(value["path"], group)
            return value if data is None else {**value, "bytes": data}
        return {key: filled(item) for key, item in value.items()}

    return {
        "id": group.stem,
        **{k: filled(v) if k in ("content", "messages") else v for k, v in record.items()},
    }


def _member(path: str, group: _Group) -> bytes | None:
    stem = group.stem.rpartition("/")[2]
    images = group.ending(*IMAGE_SUFFIXES)
    for prefix in (f"{group.stem}.", f"{stem}.", ""):
        if path.startswith(prefix) and path.removeprefix(prefix) in images:
            return images[path.removeprefix(prefix)]
    return None
