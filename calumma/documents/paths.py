"""Where documents lie: a path of this machine, or an address that fsspec opens.

`s3://bucket/docs`, `hf://datasets/name`, `https://host/a.parquet`, `memory://a.jsonl` and chains
such as `zip://a.jsonl::https://host/a.zip` are addresses; `file://` is a path like any other. An
address has the methods of a path that readers use, so whoever reads need not ask which it is.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import fsspec
import pyarrow as pa

from calumma.errors import CalummaError, DocumentError, StorageError

_LOCAL_SCHEMES = ("file://", "local://")
_VERSION_KEYS = (
    "ETag", "etag", "e_tag", "mtime", "LastModified", "last_modified", "Last-Modified", "created",
    "generation", "md5", "md5Hash", "Content-MD5", "Digest", "CRC", "blob_id", "version_id",
)  # fmt: skip
"""What file systems call that which changes with a file's contents."""

_MISSING_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""What says that a file is not there; all else says that its place does not hand it out."""


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of another file system.

    All that looks at it raises OSError where it is not there, and PlaceError where that cannot be
    told: the connection, the keys or the server failed, which is no fault of a document.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def _head(self) -> str:
        """The part of a chain that has a path: `zip://a` in `filecache::zip://a::s3://b`."""
        links = self.url.split("::")
        return next((link for link in links if "://" in link), links[0])

    @property
    def _path(self) -> str:
        scheme, _, path = self._head.partition("://")
        return urlsplit(self._head).path if scheme in ("http", "https") else path

    def _at(self, head: str) -> RemotePath:
        return RemotePath(self.url.replace(self._head, head, 1))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self._path.rstrip("/"))

    @property
    def suffix(self) -> str:
        """What the name ends in, from its last dot."""
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> RemotePath:
        """The folder that it stands in."""
        scheme, _, path = self._head.partition("://")
        if scheme in ("http", "https"):
            path = path.partition("?")[0].partition("#")[0]
        return self._at(f"{scheme}://{posixpath.dirname(path.rstrip('/'))}")

    def __truediv__(self, name: str) -> RemotePath:
        scheme, _, path = self._head.partition("://")
        if scheme in ("http", "https"):
            name = quote(name)
        return self._at(f"{scheme}://{path.rstrip('/')}/{name}")

    def exists(self) -> bool:
        """Whether something is there."""
        system, path = _filesystem(self.url)
        try:
            with _translate_errors(self.url):
                system.info(path)
        except OSError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether it is a folder that can be listed."""
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            return bool(system.isdir(path))

    def is_file(self) -> bool:
        """Whether it is a file."""
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            return bool(system.isfile(path))

    def list_dir(self) -> list[tuple[RemotePath, bool]]:
        """What the folder holds, by name, each with whether it is a folder again."""
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            found = system.ls(path, detail=True)
        here = [
            one for one in found if posixpath.dirname(one["name"].rstrip("/")) == path.rstrip("/")
        ]
        made = [
            (self._at(system.unstrip_protocol(one["name"])), one["type"] == "directory")
            for one in here
        ]
        return sorted(((one, folder) for one, folder in made if one.name), key=lambda m: m[0].name)

    def expand_glob(self) -> list[RemotePath]:
        """The files whose address this one, as a glob, stands for."""
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            found = sorted(system.glob(path))
        return [self._at(system.unstrip_protocol(one)) for one in found]

    def open(self, mode: str = "rb") -> io.RawIOBase:
        """The file, to be read from any place of it if its file system can do that.

        Raises:
            OSError: it is not there.
            PlaceError: it is not handed out.
            DocumentError: the file system is unknown or its package is not installed.
        """
        assert mode == "rb"
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            return _TranslatedFile(system.open(path, "rb"), system, self.url)

    def read_bytes(self) -> bytes:
        """All of the file.

        Raises:
            OSError, PlaceError, DocumentError: as `open`.
        """
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            data: bytes = system.cat_file(path)
            return data

    def version(self) -> list[str]:
        """What changes with the file: size, hash, time; empty where only the size is known."""
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            known = system.info(path)
        marks = [f"{name}={known[name]}" for name in _VERSION_KEYS if known.get(name)]
        return [f"size={known.get('size')}", *marks] if marks else []


AnyPath = Path | RemotePath


def parse_path(name: Path | str | RemotePath) -> AnyPath:
    """A path or an address, as a user names it.

    >>> place_of("a/b.jsonl"), place_of("file:///a/b.jsonl")
    (PosixPath('a/b.jsonl'), PosixPath('/a/b.jsonl'))
    >>> place_of("s3://bucket/a.tar")
    Url(address='s3://bucket/a.tar')
    """
    if isinstance(name, Path | RemotePath):
        return name
    for scheme in _LOCAL_SCHEMES:
        if name.startswith(scheme) and "::" not in name:
            return Path(name.removeprefix(scheme))
    return RemotePath(name) if "://" in name else Path(name)


def absolute_name(where: AnyPath) -> str:
    """A name that means the same in any process and working folder."""
    return str(where) if isinstance(where, RemotePath) else str(where.resolve())


def list_dir(folder: AnyPath) -> list[tuple[AnyPath, bool]]:
    """What a folder holds, by name, each with whether it is a folder again; hidden things are not.

    Raises:
        OSError, DocumentError: it cannot be listed.
    """
    if isinstance(folder, RemotePath):
        found: list[tuple[AnyPath, bool]] = [*folder.list_dir()]
    else:
        found = [(path, path.is_dir()) for path in sorted(folder.iterdir())]
    return [(one, is_folder) for one, is_folder in found if not one.name.startswith(".")]


def resolve_inside(folder: AnyPath, path: str) -> AnyPath | None:
    """What a relative path means in a folder, or None where it leads out of it."""
    if isinstance(folder, Path):
        target = (folder / path.replace("\0", "")).resolve()
        return target if target.is_relative_to(folder.resolve()) else None
    plain = posixpath.normpath(path.replace("\\", "/"))
    if plain.startswith(("/", "../")) or plain in ("..", "."):
        return None
    if "::" in path or "://" in path or "\0" in path:
        return None
    return folder / plain


def file_version(where: AnyPath) -> list[Any]:
    """What changes with a file; empty for a folder, and for a file that does not tell.

    Raises:
        OSError, DocumentError: it cannot be looked at.
    """
    if isinstance(where, RemotePath):
        return where.version()
    found = where.stat()
    return [found.st_size, found.st_mtime_ns] if where.is_file() else []


@contextmanager
def open_arrow(where: AnyPath, *, mapped: bool = False) -> Iterator[pa.NativeFile]:
    """A file as pyarrow reads it, memory-mapped if that is asked for and it is of this machine.

    Raises:
        OSError, DocumentError: it cannot be opened.
    """
    if isinstance(where, RemotePath):
        with where.open() as file, pa.PythonFile(file, mode="r") as native:
            yield native
        return
    with pa.memory_map(str(where)) if mapped else pa.OSFile(str(where)) as native:
        yield native


def _filesystem(address: str) -> tuple[Any, str]:
    """The file system of an address, and what it calls the address.

    Raises:
        DocumentError: it is unknown, or a package that it takes is not installed.
    """
    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise DocumentError(
            f"{address}: a package that opens it is not installed ({_line(error)}); expected it. "
            "Install it, or copy the files here."
        ) from error
    except ValueError as error:
        raise DocumentError(
            f"{address}: not known what opens it ({_line(error)}); expected an address that fsspec "
            "opens, such as s3://, gs://, hf:// or https://. Fix it, or copy the files here."
        ) from error
    except Exception as error:
        raise _translated(address, error) from error
    return system, path


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


@contextmanager
def _translate_errors(address: str) -> Iterator[None]:
    """Turn whatever a file system raises into what `Url` says that it raises."""
    try:
        yield
    except CalummaError:
        raise
    except Exception as error:
        raise _translated(address, error) from error


def _translated(address: str, error: Exception) -> OSError | StorageError:
    if _is_missing(error):
        number = error.errno if isinstance(error, OSError) and error.errno else errno.ENOENT
        return OSError(number, os.strerror(number))
    cause = error.__cause__
    if isinstance(cause, Exception) and type(cause).__module__ != "builtins":
        error = cause
    return StorageError(
        f"{address}: cannot be reached ({type(error).__name__}: {_line(error)}); expected what is "
        "stored there. Fix the address, the keys or the connection, and start the same command "
        "again: nothing was left out for this."
    )


def _is_missing(error: Exception) -> bool:
    """Whether a file is not there, said by somebody who knows.

    To some file systems a server that does not answer is "not found": then what it was raised
    from is a fault of the connection, which has no status 404.
    """
    if isinstance(error, OSError) and error.errno in _MISSING_ERRNOS:
        return True
    if not isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return False
    cause = error.__cause__
    if cause is None or type(cause).__module__ == "builtins":
        return True
    said = getattr(cause, "response", None)
    if not isinstance(said, dict):
        return getattr(cause, "status", None) in (404, 410)
    known = said.get("Error", {}).get("Code") != "NoSuchBucket"
    return known and said.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404


class _TranslatedFile(io.RawIOBase):
    """A file of fsspec whose faults are those of `Url`."""

    def __init__(self, file: Any, system: Any, address: str) -> None:
        self._file = file
        self._address = address
        self._system = system  # one that nobody holds may close what its files read from

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with _translate_errors(self._address):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with _translate_errors(self._address):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        with _translate_errors(self._address):
            return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
