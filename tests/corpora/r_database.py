"""Writes the small part of R's serialisation that the tests need."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_HEAD = b"X\n" + struct.pack(">iiii", 3, 0x40201, 0x30500, 5) + b"UTF-8"


def _int(number: int) -> bytes:
    return struct.pack(">i", number)


def _string(text: str | None) -> bytes:
    if text is None:
        return _int(9) + _int(-1)
    return _int(0x40009) + _int(len(text.encode())) + text.encode()


def strings(texts: list[str | None]) -> bytes:
    """A text vector."""
    return _int(16) + _int(len(texts)) + b"".join(map(_string, texts))


def _integers(numbers: list[int]) -> bytes:
    return _int(13) + _int(len(numbers)) + b"".join(map(_int, numbers))


def _named_list(items: dict[str, bytes], symbol: bytes) -> bytes:
    names = _int(0x402) + symbol + strings(list(items)) + _int(0xFE)
    return _int(0x213) + _int(len(items)) + b"".join(items.values()) + names


def write_database(index: Path, variables: dict[str, list[str | None]]) -> Path:
    """Write `index` (.rdx) and the .rdb beside it, each variable a text vector."""
    data, places = b"", {}
    for name, texts in variables.items():
        value = _HEAD + strings(texts)
        packed = _int(len(value)) + zlib.compress(value)
        places[name] = _integers([len(data), len(packed)])
        data += packed
    names_symbol = _int(1) + _string("names")
    names_again = _int(0x1FF)  # the first symbol that was written
    inner = _named_list(places, names_symbol)
    whole = _named_list(
        {"variables": inner, "compressed": _int(10) + _int(1) + _int(1)}, names_again
    )
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_bytes(zlib.compress(_HEAD + whole))
    index.with_suffix(".rdb").write_bytes(data)
    return index
