"""R's lazy-load databases: the text vectors in them, read without R.

A database is two files. `NAME.rdx` is a serialised list whose element `variables` says where in
`NAME.rdb` each variable lies (offset and length in bytes); a variable is its length unpacked (four
bytes, big-endian) and a serialised value, both files being deflated. Only the few types that
vectors of text need are read. Format: the R Internals manual, section "Serialization Formats".
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

from calumma.errors import CorpusError

_SYMBOL, _PAIRS, _STRING, _LOGICAL, _INTEGER, _STRINGS, _LIST = 1, 2, 9, 10, 13, 16, 19
_NULL, _REFERENCE = 0xFE, 0xFF
_HAS_ATTRIBUTES, _HAS_TAG = 0x200, 0x400
_GZIP_OR_ZLIB = 47
"""The `wbits` that makes zlib accept either head."""


def read_database(index: Path) -> dict[str, Any]:
    """Read the variables of a database, given its `.rdx` file.

    Returns:
        name -> value; a text vector is a list of str.

    Raises:
        CorpusError: a file is not of this format.
    """
    try:
        places = _Reader(zlib.decompress(index.read_bytes(), _GZIP_OR_ZLIB)).value()["variables"]
        data = index.with_suffix(".rdb").read_bytes()
        return {
            name: _Reader(zlib.decompress(data[start + 4 : start + length])).value()
            for name, (start, length) in places.items()
        }
    except (zlib.error, struct.error, KeyError, TypeError, ValueError) as error:
        raise CorpusError(
            f"{index}: no R database that can be read ({error}); expected one of format 3 with "
            "vectors of text. Fetch the package again."
        ) from error


class _Reader:
    """Reads one serialised value in XDR form from its bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.symbols: list[str] = []
        if self._take(2) != b"X\n":
            raise ValueError("not in XDR form")
        version, _, _ = self._int(), self._int(), self._int()
        if version == 3:
            self._take(self._int())  # the name of the native encoding

    def value(self) -> Any:
        """Read the next value: dict for a named list, list for vectors, str, or None."""
        flags = self._int()
        kind = flags & 0xFF
        if kind == _NULL:
            return None
        if kind == _REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == _SYMBOL:
            self.symbols.append(self.value())
            return self.symbols[-1]
        if kind == _PAIRS:
            return self._pairs(flags)
        if kind == _STRING:
            length = self._int()
            return None if length == -1 else self._take(length).decode("utf-8", "replace")
        if kind not in (_LOGICAL, _INTEGER, _STRINGS, _LIST):
            raise ValueError(f"a value of type {kind}")
        read = self._int if kind in (_LOGICAL, _INTEGER) else self.value
        items = [read() for _ in range(self._int())]
        attributes = self.value() if flags & _HAS_ATTRIBUTES else {}
        names = attributes.get("names") if kind == _LIST else None
        return dict(zip(names, items, strict=True)) if names else items

    def _pairs(self, flags: int) -> dict[str, Any]:
        attributes = self.value() if flags & _HAS_ATTRIBUTES else {}
        tag = self.value() if flags & _HAS_TAG else ""
        pairs = {tag: self.value(), **attributes}
        return {**pairs, **(self.value() or {})}

    def _int(self) -> int:
        (number,) = struct.unpack(">i", self._take(4))
        return int(number)

    def _take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise ValueError("cut short")
        self.at += count
        return piece
