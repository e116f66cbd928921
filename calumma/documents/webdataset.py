"""Reader of WebDataset tar files: members with the same stem are one document.

    0001.jpg  0001.txt            an image and its caption
    0002.png  0002.json           an image, and a JSON object
    0003.a.png 0003.b.png 0003.json   images that the JSON's parts name, as "a.png" or in full

The stem is the member's name up to the first dot of its last part. Members of one document are
adjacent, as in WebDataset; the archive is read once, from front to back.
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
from calumma.documents.error_policy import (
    DroppedDocument,
    OnError,
    drop_or_raise,
    unreadable_file_error,
)
from calumma.documents.image_formats import IMAGE_SUFFIXES
from calumma.documents.paths import AnyPath
from calumma.errors import DocumentError

_TEXT_KEYS = ("text", "caption")


@dataclass
class _Sample:
    """The members with one stem: their bytes by the name after the stem."""

    stem: str
    members: dict[str, bytes] = field(default_factory=dict)

    def with_suffix(self, *suffixes: str) -> dict[str, bytes]:
        """Return the members with one of these suffixes, in the order of the archive."""
        return {k: v for k, v in self.members.items() if f".{k}".lower().endswith(suffixes)}


def read_tar(
    path: AnyPath, on_error: OnError = "raise", *, offset: int = 0, count: int | None = None
) -> Iterator[Document | DroppedDocument]:
    """Read the documents of one tar file: images first, in the order of the archive, then text.

    Args:
        path: the file.
        on_error: what to do at a sample that is no document.
        offset: bytes to skip: one of the offsets of `tar_offsets`.
        count: number of documents to read; None for all.

    Raises:
        DocumentError: the file cannot be read; under "raise" also a truncated archive or a bad
            sample.
    """
    try:
        with path.open("rb") as file:
            if offset:
                file.seek(offset)
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for sample in itertools.islice(_samples(archive), count):
                    yield _parse_sample(sample, path, on_error)
    except (tarfile.TarError, EOFError) as error:
        corrupt = DocumentError(
            f"{path}: a truncated or corrupt tar archive ({error}); expected a WebDataset .tar, "
            "not compressed. Copy or write the file again."
        )
        yield drop_or_raise(corrupt, on_error)
    except OSError as error:
        raise unreadable_file_error(path, error, "a WebDataset .tar") from error


def tar_offsets(path: Path) -> list[int]:
    """Return the offset in bytes of each document of a local tar file, from its headers alone.

    Empty if a global header applies to all members after it.

    Raises:
        tarfile.TarError, OSError: the archive is corrupt or cannot be read.
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
    """Yield the members in order, without the list of all of them that the archive would keep."""
    for member in archive:
        yield member
        archive.members = []  # type: ignore[attr-defined]  # missing in the type stubs


def _stem_and_key(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    stem, _, key = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), key


def _samples(archive: tarfile.TarFile) -> Iterator[_Sample]:
    sample: _Sample | None = None
    for member in _members(archive):
        file = archive.extractfile(member) if member.isfile() else None
        if file is None:
            continue
        stem, key = _stem_and_key(member.name)
        if sample is not None and sample.stem != stem:
            yield sample
            sample = None
        sample = sample or _Sample(stem)
        sample.members[key] = file.read()
    if sample is not None:
        yield sample


def _decode_utf8(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{where}: byte {error.start} is not UTF-8; expected text in UTF-8. Save it as UTF-8, "
            "or drop the document."
        ) from error


def _parse_sample(
    sample: _Sample, archive: AnyPath, on_error: OnError
) -> Document | DroppedDocument:
    where = f"{archive}, {sample.stem}"
    try:
        record = _load_json_member(sample, where)
        if "content" not in record and "messages" not in record:
            return document_from_json(_flat_record(sample, record, where), None, where)
        return document_from_json(_with_images(record, sample), None, where)
    except DocumentError as error:
        return drop_or_raise(error, on_error)


def _flat_record(sample: _Sample, record: dict[str, Any], where: str) -> dict[str, Any]:
    images = sample.with_suffix(*IMAGE_SUFFIXES).values()
    parts: list[dict[str, Any]] = [{"type": "image", "bytes": data} for data in images]
    captions = sample.with_suffix(".txt", ".caption").items()
    text = next((_decode_utf8(data, f"{where}.{key}") for key, data in captions), "")
    text = text or next((record[k] for k in _TEXT_KEYS if isinstance(record.get(k), str)), "")
    if text.strip():
        parts.append({"type": "text", "text": text.strip()})
    if not parts:
        raise DocumentError(
            f"{where}: neither image nor text; expected a member that ends in .txt, .json or one "
            f"of {' '.join(IMAGE_SUFFIXES)}. Rename the members, or drop the document."
        )
    fields = {key: record[key] for key in ("id", "source", "license") if key in record}
    attributes = {
        key: str(value)
        for key, value in record.items()
        if key not in (*fields, *_TEXT_KEYS) and isinstance(value, str | int | float)
    }
    return {"id": sample.stem} | fields | {"content": parts, "attributes": attributes}


def _load_json_member(sample: _Sample, where: str) -> dict[str, Any]:
    """Return the object of the sample's .json member, empty if there is none."""
    for key, data in sample.with_suffix(".json").items():
        try:
            record = json.loads(_decode_utf8(data, f"{where}.{key}"))
        except json.JSONDecodeError as error:
            raise DocumentError(
                f"{where}.{key}: not JSON ({error.msg}, line {error.lineno}); expected an object. "
                "Fix it, or drop the document."
            ) from error
        return record if isinstance(record, dict) else {}
    return {}


def _with_images(record: dict[str, Any], sample: _Sample) -> dict[str, Any]:
    """Add the bytes of members to the image parts whose path names them."""

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.get("type") == "image" and isinstance(value.get("path"), str):
            data = _find_member(value["path"], sample)
            return value if data is None else {**value, "bytes": data}
        return {key: fill(item) for key, item in value.items()}

    return {
        "id": sample.stem,
        **{k: fill(v) if k in ("content", "messages") else v for k, v in record.items()},
    }


def _find_member(path: str, sample: _Sample) -> bytes | None:
    stem = sample.stem.rpartition("/")[2]
    images = sample.with_suffix(*IMAGE_SUFFIXES)
    for prefix in (f"{sample.stem}.", f"{stem}.", ""):
        if path.startswith(prefix) and path.removeprefix(prefix) in images:
            return images[path.removeprefix(prefix)]
    return None
