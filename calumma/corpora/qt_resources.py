"""Qt's resource files: pictures and sounds packed into one file, as a tree of named nodes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from calumma.errors import CorpusError

_FOLDER = 2
_ZLIB = 1


def read_resources(data: bytes) -> dict[str, bytes]:
    """The files of a resource file by their paths, those packed otherwise than by zlib left out.

    Raises:
        CorpusError: the data does not begin as a resource file.
    """
    if data[:4] != b"qres":
        raise CorpusError(
            "no Qt resource file found in a package; expected one that begins with 'qres'. The "
            "package is broken: remove it from the cache and fetch again."
        )
    version, tree, contents, names = struct.unpack_from(">IIII", data, 4)
    size = 14 if version < 2 else 22  # later versions add the time of the last change

    def walk(number: int, above: str) -> Iterator[tuple[str, bytes]]:
        place = tree + number * size
        name_at, flags = struct.unpack_from(">IH", data, place)
        path = f"{above}/{_name(data, names + name_at)}" if number else ""
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", data, place + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif flags in (0, _ZLIB):
            (content_at,) = struct.unpack_from(">I", data, place + 10)
            yield path, _content(data, contents + content_at, packed=flags == _ZLIB)

    return dict(walk(0, ""))


def _name(data: bytes, place: int) -> str:
    (length,) = struct.unpack_from(">H", data, place)
    return data[place + 6 : place + 6 + 2 * length].decode("utf-16-be")


def _content(data: bytes, place: int, *, packed: bool) -> bytes:
    (length,) = struct.unpack_from(">I", data, place)
    content = data[place + 4 : place + 4 + length]
    return zlib.decompress(content[4:]) if packed else content
