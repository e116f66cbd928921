"""Reader of WebDataset tar files: members with the same stem are one document.

    0001.jpg  0001.txt            an image and its caption
    0002.png  0002.json           an image, and a JSON object
    0003.a.png 0003.b.png 0003.json   images that the JSON's parts name, as "a.png" or in full

The stem is the member's name up to the first dot of its last part. Members of one document are
adjacent, as in WebDataset; an archive in which a stem comes a second time is refused. Files that
macOS adds (`._1.png`, `__MACOSX`, `.DS_Store`) are skipped.
"""

import itertools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calumma.documents.document import Document, document_from_json
from calumma.documents.error_policy import DroppedDocument, OnError, drop_or_raise, unreadable_file_error
from calumma.documents.image_formats import IMAGE_SUFFIXES
from calumma.documents.paths import AnyPath
from calumma.documents.record import IMAGE_COLUMNS, is_structured, normalize_record
from calumma.errors import DocumentError

_TEXT_KEYS = ("text", "caption")


class ScatteredSampleError(DocumentError):
    """Members of one document are not next to each other."""


@dataclass
class _Sample:
    """The members with one stem: their bytes by the name after the stem."""

    stem: str
    members: dict[str, bytes] = field(default_factory=dict)

    repeated: str = ""
    """The name after the stem that two members have; empty if all differ."""

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
        if isinstance(path, Path) and count is None:
            tar_offsets(path)  # refuses stems that come a second time
        with path.open("rb") as file:
            if offset:
                file.seek(offset)
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for sample in itertools.islice(_samples(archive, path), count):
                    yield _parse_sample(sample, path, on_error)
    except (tarfile.TarError, EOFError) as error:
        corrupt = DocumentError(
            f"{path}: a truncated or corrupt tar archive ({error}); expected a WebDataset .tar, "
            "not compressed. Copy or write the file again."
        )
        yield drop_or_raise(corrupt, on_error)
    except ScatteredSampleError as error:
        if not isinstance(path, Path):
            raise  # documents that are parts of others were read before
        yield drop_or_raise(error, on_error)
    except OSError as error:
        raise unreadable_file_error(path, error, "a WebDataset .tar") from error


def tar_offsets(path: Path) -> list[int]:
    """Return the offset in bytes of each document of a local tar file, from its headers alone.

    Empty if a global header applies to all members after it.

    Raises:
        ScatteredSampleError: a stem comes a second time, after other members.
        tarfile.TarError, OSError: the archive is corrupt or cannot be read.
    """
    offsets: list[int] = []
    stems = _Stems(path)
    has_global_header = False
    with tarfile.open(path, "r:") as archive:
        for member in _members(archive):
            has_global_header = has_global_header or bool(archive.pax_headers)
            if stems.is_new(_stem_and_key(member.name)[0], member.name):
                offsets.append(member.offset)
    return [] if has_global_header else offsets


class _Stems:
    """The stems of an archive so far; refuses one that comes a second time."""

    def __init__(self, archive: AnyPath) -> None:
        self._archive = archive
        self._seen: set[str] = set()
        self._last: str | None = None

    def is_new(self, stem: str, member: str) -> bool:
        """Return whether a member is the first one of a document."""
        if stem == self._last:
            return False
        if stem in self._seen:
            raise ScatteredSampleError(
                f"{self._archive}: {member} is apart from the other members of {stem}; expected "
                "the members of one document next to each other. Write the archive again, sorted "
                "by name (tar --sort=name)."
            )
        self._seen.add(stem)
        self._last = stem
        return True


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files in order, without the list of all of them that the archive would keep."""
    for member in archive:
        parts = member.name.split("/")
        is_companion = parts[-1].startswith("._") or parts[-1] == ".DS_Store"
        if member.isfile() and not is_companion and "__MACOSX" not in parts:
            yield member
        archive.members = []  # type: ignore[attr-defined]  # missing in the type stubs


def _stem_and_key(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    stem, _, key = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), key


def _samples(archive: tarfile.TarFile, path: AnyPath) -> Iterator[_Sample]:
    sample: _Sample | None = None
    stems = _Stems(path)
    for member in _members(archive):
        file = archive.extractfile(member)
        if file is None:
            continue
        stem, key = _stem_and_key(member.name)
        if stems.is_new(stem, member.name):
            if sample is not None:
                yield sample
            sample = _Sample(stem)
        assert sample is not None, "the first member is new"
        if key in sample.members:
            sample.repeated = key
        sample.members[key] = file.read()
    if sample is not None:
        yield sample


def _decode_utf8(data: bytes, where: str) -> str:
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{where}: byte {error.start} is not UTF-8; expected text in UTF-8. Save it as UTF-8, "
            "or drop the document."
        ) from error


def _parse_sample(sample: _Sample, archive: AnyPath, on_error: OnError) -> Document | DroppedDocument:
    where = f"{archive}, {sample.stem}"
    try:
        if sample.repeated:
            raise DocumentError(
                f"{where}.{sample.repeated}: the archive has two members of this name; expected "
                "one. Rename one of them, or drop the document."
            )
        record = _load_json_member(sample, where)
        images = [*sample.with_suffix(*IMAGE_SUFFIXES)]
        if not is_structured(record, where):
            return document_from_json(_flat_record(sample, record, where), None, where)
        record, named = _with_images(record, sample)
        beside = [{"type": "image", "bytes": sample.members[key]} for key in images if key not in named]
        if beside:  # the members are the images that these columns name
            record = {
                key: None if key in IMAGE_COLUMNS and isinstance(value, str | list) else value
                for key, value in record.items()
            }
        record = normalize_record(record, where, beside)
        document = document_from_json({"id": sample.stem} | record, None, where)
        for key, data in sample.with_suffix(".txt", ".caption").items():
            if _decode_utf8(data, f"{where}.{key}").strip() not in document.text:
                raise DocumentError(
                    f"{where}.{key}: a text that the parts or turns of the .json member do not "
                    "hold; expected one of the two. Remove one of the members."
                )
        return document
    except DocumentError as error:
        return drop_or_raise(error, on_error)


def _flat_record(sample: _Sample, record: dict[str, Any], where: str) -> dict[str, Any]:
    captions = {
        key: _decode_utf8(data, f"{where}.{key}").strip()
        for key, data in sample.with_suffix(".txt", ".caption").items()
    }
    if not any(captions.values()):
        captions = {"": next((record[k] for k in _TEXT_KEYS if isinstance(record.get(k), str)), "")}
    parts: list[dict[str, Any]] = []
    images = sample.with_suffix(*IMAGE_SUFFIXES)
    for key, data in images.items():
        parts.append({"type": "image", "bytes": data})
        # Of several images, a caption of the same name (0.png, 0.txt) is next to its image.
        name = key.rpartition(".")[0]
        if name and len(images) > 1:
            own = [caption for caption in captions if caption.rpartition(".")[0] == name]
            parts += [{"type": "text", "text": captions.pop(caption)} for caption in own]
    parts += [{"type": "text", "text": text.strip()} for text in captions.values() if text.strip()]
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
        if not isinstance(record, dict):
            raise DocumentError(
                f"{where}.{key}: found {type(record).__name__}; expected an object. Fix it, or drop the document."
            )
        return record
    return {}


def _with_images(record: dict[str, Any], sample: _Sample) -> tuple[dict[str, Any], set[str]]:
    """Add the bytes of members to the image parts whose path names them.

    Returns the record, and the keys of the members that are named.
    """
    named: set[str] = set()

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.get("type") == "image" and isinstance(value.get("path"), str):
            key = _find_member(value["path"], sample)
            if key is None:
                return value
            named.add(key)
            return {**value, "bytes": sample.members[key]}
        return {key: fill(item) for key, item in value.items()}

    filled = {k: fill(v) if k in ("content", "messages") else v for k, v in record.items()}
    return filled, named


def _find_member(path: str, sample: _Sample) -> str | None:
    """Return the key of the image member that a path names."""
    stem = sample.stem.rpartition("/")[2]
    images = sample.with_suffix(*IMAGE_SUFFIXES)
    for prefix in (f"{sample.stem}.", f"{stem}.", ""):
        if path.startswith(prefix) and path.removeprefix(prefix) in images:
            return path.removeprefix(prefix)
    return None
