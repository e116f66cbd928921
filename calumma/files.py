"""Atomic file writes, JSON files and hashes."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Raise an `OutputError` where the operating system refuses to write `path`."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number in _FULL:
            raise OutputError(
                f"{path}: no space left on the device; expected free space for it. Free some space, or give --out a "
                "folder on another disk, and run the same command to resume."
            ) from error
        if number in _REFUSED:
            raise OutputError(
                f"{path}: cannot be written ({os.strerror(number or 0)}); "
                "expected a folder that you may write to. Choose another --out."
            ) from error
        raise


def _error_number(error: Exception) -> int | None:
    """Return the errno of an error, or None.

    Libraries written in Rust, such as safetensors, have it in the text of the error only.
    """
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match.group(1)) if match else None


def is_address(path: Path) -> bool:
    """Return whether a path is a URL such as s3://bucket/a, which Path shortens to s3:/bucket/a.

    >>> is_address(Path("s3://bucket/a")), is_address(Path("a/s3"))
    (True, False)
    """
    return bool(path.parts and re.fullmatch(r"[a-z][a-z0-9+.-]+:", path.parts[0]))


def require_local(path: Path) -> None:
    """Refuse to write to a URL, which would create a local folder called `s3:`.

    Raises:
        OutputError: the path is a URL.
    """
    if is_address(path):
        raise OutputError(f"{path}: a URL; expected a local folder. Choose a local --out and copy it afterwards.")


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, and check that it is writable.

    Raises:
        OutputError: the folder cannot be written, or the path is a URL.
    """
    require_local(path)
    probe = path / ".writable"
    with os_errors_as_output_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            # Raised by /proc and similar file systems, which allow no new folders.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have removed it
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to `path` when the block succeeds.

    The block may create a file or a folder there. A reader sees the old version or the new one,
    never a partial one; the next writer removes the temporary files of a killed one.
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
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileError: the file is truncated or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(
            f"{path}: not valid JSON ({error}); expected the file as calumma or transformers wrote "
            "it. Copy it again, or delete it and rebuild it."
        ) from error


class JsonLines(Sequence[Any]):
    """A lazily read JSON Lines file; takes 8 bytes of memory per line."""

    def __init__(self, path: Path, parse: Callable[[Any], Any] = lambda value: value) -> None:
        """Index the lines of the file, which must not change; `parse` converts each value."""
        self.path = path
        self._parse = parse
        self._ends = array("q", [0])
        with path.open("rb") as file:
            for line in file:
                self._ends.append(self._ends[-1] + len(line))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[line] for line in range(len(self))[index]]
        line = range(len(self))[index]
        with self.path.open("rb") as file:
            file.seek(self._ends[line])
            return self._parse(json.loads(file.read(self._ends[line + 1] - self._ends[line])))

    def __iter__(self) -> Iterator[Any]:
        with self.path.open("rb") as file:
            yield from map(self._parse, map(json.loads, file))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(self.path)


def write_json_lines(path: Path, values: Iterable[Any]) -> JsonLines:
    """Write an iterable as JSON Lines, atomically and one value at a time."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    return JsonLines(path)


def fingerprint(content: str | Iterable[bytes]) -> str:
    """Return the first twelve hex digits of the SHA-256 of a text or of chunks of bytes.

    >>> fingerprint("abc") == fingerprint([b"ab", b"c"])
    True
    """
    digest = hashlib.sha256()
    for chunk in [content.encode()] if isinstance(content, str) else content:
        digest.update(chunk)
    return digest.hexdigest()[:12]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
