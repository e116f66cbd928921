"""Qt resource files for tests."""

from __future__ import annotations

import struct
import zlib


def qres(folder: str, files: dict[str, bytes], *, compressed: bool = False) -> bytes:
    """Build a resource file of version 1 with one folder."""
    names, contents = b"", b""
    nodes = [struct.pack(">IHII", 0, 2, 1, 1)]

    def named(name: str) -> int:
        nonlocal names
        offset = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return offset

    nodes.append(struct.pack(">IHII", named(folder), 2, len(files), 2))
    for name, content in files.items():
        if compressed:
            content = struct.pack(">I", len(content)) + zlib.compress(content)
        nodes.append(struct.pack(">IHHHI", named(name), int(compressed), 0, 0, len(contents)))
        contents += struct.pack(">I", len(content)) + content
    tree = b"".join(nodes)
    offsets = (20, 20 + len(tree), 20 + len(tree) + len(contents))
    return b"qres" + struct.pack(">IIII", 1, *offsets) + tree + contents + names
