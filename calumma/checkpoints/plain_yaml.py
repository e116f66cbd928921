"""The part of YAML that configs of image tokenizers use; there is no need of a library for it.

Mappings by indentation, lists of plain values in brackets or one to a line, numbers, words,
true, false, null, and comments. Anything else is refused, with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from calumma.errors import FileError

_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "null", "Null", "NULL", "~")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_WHOLE = re.compile(r"[-+]?\d+")
_NUMBER = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?")
_BEYOND = tuple("&*!|>{%@`")


@dataclass(frozen=True)
class _Line:
    number: int
    indent: int
    text: str


def parse_yaml(text: str, where: object) -> Any:
    """The mapping or list that a text stands for.

    Args:
        text: YAML of the kind above.
        where: the file, for messages.

    Raises:
        FileError: a line is beyond this part of YAML.

    >>> parse_yaml("model:\\n  params:\\n    ch_mult: [1, 2]\\n    name: vq # short\\n", "x.yaml")
    {'model': {'params': {'ch_mult': [1, 2], 'name': 'vq'}}}
    """
    lines = list(_lines(text))
    value, rest = _block(lines, 0, where)
    if rest < len(lines):
        raise _beyond(where, lines[rest])
    return value


def _lines(text: str) -> Iterator[_Line]:
    for number, line in enumerate(text.splitlines(), start=1):
        kept = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        if kept.strip() not in ("", "---"):
            yield _Line(number, len(kept) - len(kept.lstrip()), kept.strip())


def _block(lines: list[_Line], at: int, where: object) -> tuple[Any, int]:
    """The value that begins at line `at`, and the line behind it."""
    if at < len(lines) and lines[at].text.startswith("- "):
        return _list(lines, at, where)
    values: dict[str, Any] = {}
    indent = lines[at].indent if at < len(lines) else 0
    while at < len(lines) and lines[at].indent == indent:
        line = lines[at]
        found = re.fullmatch(r"([\w.\-/]+)\s*:(?:\s+(.*))?", line.text)
        if found is None or found[1] in values:
            raise _beyond(where, line)
        at += 1
        if found[2]:
            values[found[1]] = _value(found[2], line, where)
            continue
        # A list may stand under its name without being indented.
        deeper = at < len(lines) and lines[at].indent > indent
        listed = at < len(lines) and lines[at].indent == indent and lines[at].text.startswith("- ")
        values[found[1]] = None
        if deeper or listed:
            values[found[1]], at = _block(lines, at, where)
    return values, at


def _list(lines: list[_Line], at: int, where: object) -> tuple[list[Any], int]:
    values, indent = [], lines[at].indent
    while at < len(lines) and lines[at].indent == indent and lines[at].text.startswith("- "):
        values.append(_value(lines[at].text[2:].strip(), lines[at], where))
        at += 1
    return values, at


def _value(text: str, line: _Line, where: object) -> Any:
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        return [_value(part.strip(), line, where) for part in inner.split(",")] if inner else []
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0] and text[0] not in text[1:-1]:
        return text[1:-1]
    if text.startswith((*_BEYOND, "[", '"', "'")) or re.search(r":(\s|$)", text):
        raise _beyond(where, line)
    return text


def _beyond(where: object, line: _Line) -> FileError:
    return FileError(
        f"{where}:{line.number}: cannot be read ({line.text[:60]}); expected plain YAML: names, "
        "numbers, words and lists of them, by indentation. Write the line so."
    )


def write_yaml(value: Mapping[str, Any], indent: int = 0) -> str:
    """The text of mappings of mappings, lists, numbers and words.

    >>> print(write_yaml({"model": {"ch_mult": [1, 2], "dropout": 0.0, "path": None}}), end="")
    model:
      ch_mult: [1, 2]
      dropout: 0.0
      path: null
    """
    lines = []
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            lines.append(f"{' ' * indent}{name}:\n{write_yaml(entry, indent + 2)}")
        else:
            lines.append(f"{' ' * indent}{name}: {_spelt(entry)}\n")
    return "".join(lines)


def _spelt(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_spelt, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
