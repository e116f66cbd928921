"""Writing that is whole or not there at all: atomic files, JSON, hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from calumma.errors import FileError, OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENODEV),
}


@contextlib.contextmanager
def os_errors_as_output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about `path` into one line a user can act on."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number in _FULL:
            raise OutputError(
                f"{path}: no space left on the device; expected room for this file. "
                "Free some space, or give --out a folder on another disk; "
                "the same command then goes on from what is saved."
            ) from error
        if number in _REFUSED:
            raise OutputError(
                f"{path}: cannot be written ({os.strerror(number or 0)}); "
                "expected a folder that you may write to. Choose another --out."
            ) from error
        raise


def _error_number(error: Exception) -> int | None:
    """The operating system's number for an error.

    Libraries written in Rust, such as safetensors, tell it at the end of their text only.
    """
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told.group(1)) if told else None


def is_address(path: Path) -> bool:
    """Whether a path was meant as an address such as s3://bucket/a, which Path shortens.

    >>> is_address(Path("s3://bucket/a")), is_address(Path("a/s3"))
    (True, False)
    """
    return bool(path.parts and re.fullmatch(r"[a-z][a-z0-9+.-]+:", path.parts[0]))


def require_local(path: Path) -> None:
    """Refuse to write to an address; a folder called `s3:` would be made here.

    Raises:
        OutputError: it is one.
    """
    if is_address(path):
        raise OutputError(
            f"{path}: an address of another file system; expected a folder of this machine. Choose "
            "another --out, and copy there what is in it when all is done."
        )


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, and see that a file can be written in it.

    Raises:
        OutputError: it cannot be written, or is an address of another file system.
    """
    require_local(path)
    probe = path / ".writable"
    with os_errors_as_output_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            # What /proc and the like say where nothing can be made.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have been quicker
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, and rename it to `path` when the block succeeds.

    The block may make a file or a folder under that name. A reader sees the old thing or the
    new, never a half; what a killed writer left behind is cleared by the next one.
    """
    temporary = path.with_name(path.name + ".tmp")
    with os_errors_as_output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that it is whole or not there."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON so that it is whole or not there."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileError: it is cut short, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(
            f"{path}: is no whole JSON ({error}); expected the file as calumma or transformers "
            "wrote it. Copy it again, or delete it and make it anew."
        ) from error


class JsonLines(Sequence[Any]):
    """The values of a file of JSON lines: 8 bytes of memory each, read when asked for."""

    def __init__(self, path: Path) -> None:
        """Find where each line stands; the file must not change from then on."""
        self.path = path
        self._ends = array("q", [0])
        with path.open("rb") as file:
            for line in file:
                self._ends.append(self._ends[-1] + len(line))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        number = range(len(self))[place]
        with self.path.open("rb") as file:
            file.seek(self._ends[number])
            return json.loads(file.read(self._ends[number + 1] - self._ends[number]))

    def __iter__(self) -> Iterator[Any]:
        with self.path.open("rb") as file:
            yield from map(json.loads, file)


def write_json_lines(path: Path, values: Iterable[Any]) -> JsonLines:
    """Write values, one a line and none kept in memory, so that the file is whole or not there."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    return JsonLines(path)


def fingerprint(told: str | Iterable[bytes]) -> str:
    """Twelve hex digits that tell a text, or bytes in any pieces, from others.

    >>> fingerprint_of("abc") == fingerprint_of([b"ab", b"c"])
    True
    """
    digest = hashlib.sha256()
    for piece in [told.encode()] if isinstance(told, str) else told:
        digest.update(piece)
    return digest.hexdigest()[:12]


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
