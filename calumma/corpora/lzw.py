"""What Unix `compress` packs, unpacked: LZW with codes that grow from 9 bits to 16.

The codes lie from the lowest bit upwards in groups of eight, that is of as many bytes as a code has
bits. Where the codes grow, or the table is emptied, the rest of the group is nothing.
"""

from __future__ import annotations

from calumma.errors import CorpusError

_FIRST_BITS = 9
_MOST_BITS = 16
_CLEAR = 256
"""The code that empties the table; those below it are bytes, those above it strings met before."""


def unpack(packed: bytes) -> bytes:
    """Unpack one stream.

    Args:
        packed: the codes, without the three bytes that head a file of `compress`.

    Raises:
        CorpusError: a code stands for a string that has not been met.

    >>> unpack((97 | 257 << 9).to_bytes(3, "little"))
    b'aaa'
    """
    table = _new_table()
    bits, place, group = _FIRST_BITS, 0, 0
    before = b""
    unpacked: list[bytes] = []
    while place + bits <= 8 * len(packed):
        code = _code_at(packed, place, bits)
        place += bits
        if code == _CLEAR:
            place = group = _end_of_group(group, place, bits)
            table, bits, before = _new_table(), _FIRST_BITS, b""
            continue
        if code > len(table) or (code == len(table) and not before):
            raise CorpusError(
                f"code {code} found in packed data; expected at most {len(table)}. The package is "
                "broken: remove it from the cache and fetch again."
            )
        if before and len(table) < 1 << _MOST_BITS:
            # A code may stand for the very string that it completes: the last one and its head.
            table.append(before + (table[code] if code < len(table) else before)[:1])
        before = table[code]
        unpacked.append(before)
        if len(table) >= 1 << bits and bits < _MOST_BITS:
            place = group = _end_of_group(group, place, bits)
            bits += 1
    return b"".join(unpacked)


def _new_table() -> list[bytes]:
    return [bytes([value]) for value in range(256)] + [b""]


def _code_at(packed: bytes, place: int, bits: int) -> int:
    """The code whose lowest bit is bit `place` of the stream."""
    start = place // 8
    window = int.from_bytes(packed[start : start + 4], "little") >> place % 8
    return window & (1 << bits) - 1


def _end_of_group(group: int, place: int, bits: int) -> int:
    """The first bit at or after `place` that is whole groups away from bit `group`."""
    size = 8 * bits
    return group + -(-(place - group) // size) * size
