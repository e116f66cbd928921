"""Paths of input files: local paths, and URLs that fsspec opens.

`s3://bucket/docs`, `hf://datasets/name`, `https://host/a.parquet`, `memory://a.jsonl` and chains
such as `zip://a.jsonl::https://host/a.zip` are remote; `file://` is a local path. `RemotePath` has
the methods of `pathlib.Path` that the readers use.

universal_pathlib's `UPath` is not used: it takes ".parquet?sig=1" for the suffix of a signed URL,
does not quote names in http URLs, and reports an unreachable server as a missing file.
"""

import errno
import io
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from calumma.errors import CalummaError, DocumentError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

_LOCAL_SCHEMES = ("file://", "local://")
_VERSION_KEYS = (
    "ETag", "etag", "e_tag", "mtime", "LastModified", "last_modified", "Last-Modified", "created",
    "generation", "md5", "md5Hash", "Content-MD5", "Digest", "CRC", "blob_id", "version_id",
)  # fmt: skip
"""Keys of fsspec's `info` that change with a file's contents."""

_MISSING_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""Errors of a missing file; all others mean that the file system failed."""


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of a remote file system.

    Every access raises OSError if the file is missing, and StorageError if the connection, the
    credentials or the server failed, so that a failure is never counted as a bad document.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def _head(self) -> str:
        """The first link with a path: `zip://a` in `filecache::zip://a::s3://b`."""
        links = self.url.split("::")
        return next((link for link in links if "://" in link), links[0])

    @property
    def _path(self) -> str:
        scheme, _, path = self._head.partition("://")
        return urlsplit(self._head).path if scheme in ("http", "https") else path

    def _with_head(self, head: str) -> "RemotePath":
        return RemotePath(self.url.replace(self._head, head, 1))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self._path.rstrip("/"))

    @property
    def suffix(self) -> str:
        """The file extension, from the last dot of the name."""
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> "RemotePath":
        """The containing folder."""
        scheme, _, path = self._head.partition("://")
        if scheme in ("http", "https"):
            path = path.partition("?")[0].partition("#")[0]
        return self._with_head(f"{scheme}://{posixpath.dirname(path.rstrip('/'))}")

    def __truediv__(self, name: str) -> "RemotePath":
        scheme, _, path = self._head.partition("://")
        if scheme in ("http", "https"):
            name = quote(name)
        return self._with_head(f"{scheme}://{path.rstrip('/')}/{name}")

    def exists(self) -> bool:
        """Return whether the file or folder exists."""
        system, path = _filesystem(self.url)
        try:
            with _translate_errors(self.url):
                system.info(path)
        except OSError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether this is a folder that can be listed."""
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            return bool(system.isdir(path))

    def is_file(self) -> bool:
        """Return whether this is a file."""
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            return bool(system.isfile(path))

    def list_dir(self) -> "list[tuple[RemotePath, bool]]":
        """List (path, is_folder) of the folder's entries, sorted by name."""
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            found = system.ls(path, detail=True)
        listed = [
            (self._with_head(system.unstrip_protocol(entry["name"])), entry["type"] == "directory")
            for entry in found
            if posixpath.dirname(entry["name"].rstrip("/")) == path.rstrip("/")
        ]
        return sorted((entry for entry in listed if entry[0].name), key=lambda entry: entry[0].name)

    def expand_glob(self) -> "list[RemotePath]":
        """List the files that this URL matches as a glob, sorted."""
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            found = sorted(system.glob(path))
        return [self._with_head(system.unstrip_protocol(match)) for match in found]

    def open(self, mode: str = "rb") -> io.RawIOBase:
        """Open the file for reading, seekable if its file system supports it.

        Raises:
            OSError: the file is missing.
            StorageError: the file system failed.
            DocumentError: the file system is unknown, or its package is not installed.
        """
        assert mode == "rb"
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            return _TranslatedFile(system.open(path, "rb"), system, self.url)

    def read_bytes(self) -> bytes:
        """Read the whole file.

        Raises:
            OSError, PlaceError, DocumentError: as `open`.
        """
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            data: bytes = system.cat_file(path)
            return data

    def version(self) -> list[str]:
        """Return size and etag, hash or time of the file; empty if only the size is known."""
        system, path = _filesystem(self.url)
        with _translate_errors(self.url):
            info = system.info(path)
        marks = [f"{name}={info[name]}" for name in _VERSION_KEYS if info.get(name)]
        return [f"size={info.get('size')}", *marks] if marks else []


AnyPath = Path | RemotePath


def parse_path(name: Path | str | RemotePath) -> AnyPath:
    """Parse a local path or a URL.

    >>> parse_path("a/b.jsonl"), parse_path("file:///a/b.jsonl")
    (PosixPath('a/b.jsonl'), PosixPath('/a/b.jsonl'))
    >>> parse_path("s3://bucket/a.tar")
    RemotePath(url='s3://bucket/a.tar')
    """
    if isinstance(name, Path | RemotePath):
        return name
    for scheme in _LOCAL_SCHEMES:
        if name.startswith(scheme) and "::" not in name:
            return Path(name.removeprefix(scheme))
    return RemotePath(name) if "://" in name else Path(name)


def absolute_name(path: AnyPath) -> str:
    """Return the URL, or the absolute path, as a string."""
    return str(path) if isinstance(path, RemotePath) else str(path.resolve())


def list_dir(folder: AnyPath) -> list[tuple[AnyPath, bool]]:
    """List (path, is_folder) of a folder's entries, sorted by name, without hidden ones.

    Raises:
        OSError, DocumentError: the folder cannot be listed.
    """
    if isinstance(folder, RemotePath):
        found: list[tuple[AnyPath, bool]] = [*folder.list_dir()]
    else:
        found = [(path, path.is_dir()) for path in sorted(folder.iterdir())]
    return [(path, is_folder) for path, is_folder in found if not path.name.startswith(".")]


def resolve_inside(folder: AnyPath, path: str) -> AnyPath | None:
    """Resolve a relative path in a folder; None if it leads out of the folder."""
    if isinstance(folder, Path):
        target = (folder / path.replace("\0", "")).resolve()
        return target if target.is_relative_to(folder.resolve()) else None
    plain = posixpath.normpath(path.replace("\\", "/"))
    if plain.startswith(("/", "../")) or plain in ("..", "."):
        return None
    if "::" in path or "://" in path or "\0" in path:
        return None
    return folder / plain


def file_version(path: AnyPath) -> list[Any]:
    """Return values that change with a file's contents, such as its size and modification time.

    Empty for a folder, and for a remote file of which only the size is known.

    Raises:
        OSError, DocumentError: the file cannot be examined.
    """
    if isinstance(path, RemotePath):
        return path.version()
    found = path.stat()
    return [found.st_size, found.st_mtime_ns] if path.is_file() else []


@contextmanager
def open_arrow(path: AnyPath, *, mapped: bool = False) -> "Iterator[pa.NativeFile]":
    """Open a file for pyarrow; a local one is memory-mapped if `mapped` is set.

    Raises:
        OSError, DocumentError: the file cannot be opened.
    """
    import pyarrow as pa

    if isinstance(path, RemotePath):
        with path.open() as file, pa.PythonFile(file, mode="r") as native:
            yield native
        return
    with pa.memory_map(str(path)) if mapped else pa.OSFile(str(path)) as native:
        yield native


def _filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Raises:
        DocumentError: the file system is unknown, or a package that it needs is not installed.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DocumentError(
            f"{url}: a package that opens it is not installed ({_one_line(error)}); expected it. "
            "Install it, or copy the files here."
        ) from error
    except ValueError as error:
        raise DocumentError(
            f"{url}: fsspec cannot open it ({_one_line(error)}); expected a URL such as s3://, "
            "gs://, hf:// or https://. Fix it, or copy the files here."
        ) from error
    except Exception as error:
        raise _translated(url, error) from error
    return system, path


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Translate every error of a file system to those that `RemotePath` documents."""
    try:
        yield
    except CalummaError:
        raise
    except Exception as error:
        raise _translated(url, error) from error


def _translated(url: str, error: Exception) -> OSError | StorageError:
    if _is_missing(error):
        number = error.errno if isinstance(error, OSError) and error.errno else errno.ENOENT
        return OSError(number, os.strerror(number))
    cause = error.__cause__
    if isinstance(cause, Exception) and type(cause).__module__ != "builtins":
        error = cause
    return StorageError(
        f"{url}: cannot be reached ({type(error).__name__}: {_one_line(error)}); expected the file "
        "or folder stored there. Fix the URL, the credentials or the connection, and start the "
        "same command again: no document was dropped for this."
    )


def _is_missing(error: Exception) -> bool:
    """Return whether the server reported a missing file, not a failure of the connection.

    Some fsspec file systems raise FileNotFoundError for a server that does not answer; the cause
    of such an error is a connection error without the status 404.
    """
    if isinstance(error, OSError) and error.errno in _MISSING_ERRNOS:
        return True
    if not isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return False
    cause = error.__cause__
    if cause is None or type(cause).__module__ == "builtins":
        return True
    response = getattr(cause, "response", None)
    if not isinstance(response, dict):
        return getattr(cause, "status", None) in (404, 410)
    has_bucket = response.get("Error", {}).get("Code") != "NoSuchBucket"
    return has_bucket and response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404


class _TranslatedFile(io.RawIOBase):
    """An fsspec file whose errors are those of `RemotePath`."""

    def __init__(self, file: Any, system: Any, url: str) -> None:
        self._file = file
        self._url = url
        # A file system that is garbage-collected may close the connections of its open files.
        self._system = system

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with _translate_errors(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with _translate_errors(self._url):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        with _translate_errors(self._url):
            return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
