"""Packing as Unix `compress` does, for the tests of what unpacks it."""

from __future__ import annotations


def pack(text: bytes) -> bytes:
    """LZW with codes of 9 to 16 bits in groups of eight, as `compress` writes it."""
    table = {bytes([value]): value for value in range(256)}
    groups: list[tuple[int, list[int]]] = [(9, [])]
    size, known = 257, b""
    for value in text:
        longer = known + bytes([value])
        if longer in table:
            known = longer
            continue
        groups[-1][1].append(table[known])
        if size < 1 << 16:
            table[longer] = size
        # The table of who unpacks is one string behind: it knows one only with the next code.
        bits = groups[-1][0]
        if size >= 1 << bits and bits < 16:
            groups.append((bits + 1, []))
        size += 1
        known = bytes([value])
    if known:
        groups[-1][1].append(table[known])
    return b"".join(_written(*group, last=group is groups[-1]) for group in groups)


def _written(bits: int, codes: list[int], *, last: bool) -> bytes:
    number = sum(code << bits * place for place, code in enumerate(codes))
    whole = len(codes) if last else -(-len(codes) // 8) * 8
    return number.to_bytes(-(-whole * bits // 8), "little")
