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
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calumma.documents.document import Document
from calumma.documents.error_policy import DroppedDocument, OnError, drop_or_raise, unreadable_file_error
from calumma.documents.image_formats import IMAGE_SUFFIXES
from calumma.documents.jsonl import json_error, unique_keys
from calumma.documents.paths import AnyPath
from calumma.documents.record import document_from_record
from calumma.documents.record_columns import is_file_name, is_image_name
from calumma.errors import DocumentError

_TEXT_SUFFIXES = (".txt", ".caption", ".text")


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
    path: AnyPath,
    on_error: OnError = "raise",
    ignored: Collection[str] = (),
    *,
    offset: int = 0,
    count: int | None = None,
) -> Iterator[Document | DroppedDocument]:
    """Read the documents of one tar file: images first, in the order of the archive, then text.

    Args:
        path: the file.
        on_error: what to do at a sample that is no document.
        ignored: columns that are not read: fields of the JSON, and suffixes of members.
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
                    yield _parse_sample(sample, path, on_error, ignored)
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
                f"{self._archive}: {member} is apart from the other members of {stem}; expected the members of one "
                "document next to each other. Write the archive again, sorted by name (tar --sort=name)."
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


def _parse_sample(
    sample: _Sample, archive: AnyPath, on_error: OnError, ignored: Collection[str]
) -> Document | DroppedDocument:
    where = f"{archive}, {sample.stem}"
    try:
        if sample.repeated:
            raise DocumentError(
                f"{where}.{sample.repeated}: the archive has two members of this name; expected "
                "one. Rename one of them, or drop the document."
            )
        texts = {k: _decode_utf8(v, f"{where}.{k}").strip() for k, v in sample.with_suffix(*_TEXT_SUFFIXES).items()}
        objects = {k: _parse_object(v, f"{where}.{k}") for k, v in sample.with_suffix(".json").items()}
        if not objects and not any(texts.values()) and not sample.with_suffix(*IMAGE_SUFFIXES):
            raise DocumentError(
                f"{where}: neither image nor text; expected a member that ends in .txt, .json or one "
                f"of {' '.join(IMAGE_SUFFIXES)}. Rename the members, or drop the document."
            )
        record = objects.pop("json" if "json" in objects else next(iter(objects), ""), {})
        record, named = _with_images(record, sample)
        ordered = _ordered_members(sample, texts)
        members: dict[str, Any] = {key: data for key, data in ordered.items() if key not in named} | objects
        return document_from_record(record, None, where, default_id=sample.stem, ignored=ignored, members=members)
    except DocumentError as error:
        return drop_or_raise(error, on_error)


def _ordered_members(sample: _Sample, texts: dict[str, str]) -> dict[str, bytes | str]:
    """Return the members but JSON: images, each with its own caption, then texts, then others."""
    images = sample.with_suffix(*IMAGE_SUFFIXES)
    ordered: dict[str, bytes | str] = {}
    for key, data in images.items():
        ordered[key] = data
        # Of several images, a caption of the same name (0.png, 0.txt) is next to its image.
        name = key.rpartition(".")[0]
        if name and len(images) > 1:
            ordered |= {caption: text for caption, text in texts.items() if caption.rpartition(".")[0] == name}
    ordered |= {key: text for key, text in texts.items() if key not in ordered}
    rest = {key: data for key, data in sample.members.items() if not f".{key}".lower().endswith(".json")}
    others = {key: data for key, data in rest.items() if key not in ordered}
    return {key: value for key, value in (ordered | others).items() if value}


def _decode_utf8(data: bytes, where: str) -> str:
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{where}: byte {error.start} is not UTF-8; expected text in UTF-8. Save it as UTF-8, "
            "or drop the document."
        ) from error


def _parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Return the object of a .json member."""
    try:
        record = json.loads(_decode_utf8(data, where), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise DocumentError(
            f"{where}: not JSON ({json_error(error)}); expected an object. Fix it, or drop the document."
        ) from error
    if not isinstance(record, dict):
        raise DocumentError(
            f"{where}: found {type(record).__name__}; expected an object. Fix it, or drop the document."
        )
    return record


def _with_images(record: dict[str, Any], sample: _Sample) -> tuple[dict[str, Any], set[str]]:
    """Put the bytes of members where the JSON names them.

    Returns the record, and the keys of the members that are named.
    """
    named: set[str] = set()

    def member(path: Any) -> bytes | None:
        key = _find_member(path, sample) if isinstance(path, str) else None
        if key is None:
            return None
        named.add(key)
        return sample.members[key]

    def fill(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [fill(name, item) for item in value]
        if isinstance(value, dict):
            filled = {key: fill(key, item) for key, item in value.items()}
            path = value.get("path")
            data = member(path)
            return filled if data is None else filled | {"bytes": data, "path": path}
        if isinstance(value, str) and name != "path" and (is_image_name(name) or is_file_name(name)):
            data = member(value)
            return value if data is None else data
        return value

    return {key: fill(key, value) for key, value in record.items()}, named


def _find_member(path: str, sample: _Sample) -> str | None:
    """Return the key of the image member that a path names."""
    stem = sample.stem.rpartition("/")[2]
    images = sample.with_suffix(*IMAGE_SUFFIXES)
    for prefix in (f"{sample.stem}.", f"{stem}.", ""):
        if path.startswith(prefix) and path.removeprefix(prefix) in images:
            return path.removeprefix(prefix)
    return None
