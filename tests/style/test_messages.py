"""Every message a user can meet is compared with its text in some test.

A message counts as compared when one of its fixed pieces and a string of a test hold each other:
the piece stands in the test's string, or the string (a `match=` pattern, say) in the piece.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import calumma.errors
from tests.style.tree import PACKAGE, TESTS, literal, parsed, sources

ERRORS = {
    name
    for name, value in vars(calumma.errors).items()
    if isinstance(value, type) and issubclass(value, calumma.errors.CalummaError)
}
SHORTEST = 12
"""Pieces shorter than this prove nothing: " expected " is in every message."""


def _messages() -> Iterator[tuple[str, ast.expr]]:
    """Where each message is raised, and its expression."""
    for path in sources():
        for node in ast.walk(parsed(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id in ERRORS and node.args and literal(node.args[0]):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node.args[0]


def _tested_strings() -> set[str]:
    strings = set()
    for path in sources(TESTS):
        if path.parent.name == "house":
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant | ast.JoinedStr):
                strings.update(_plain(piece) for piece in literal(node))
    return {string for string in strings if len(string) >= SHORTEST}


def _plain(text: str) -> str:
    """Without the backslashes of a pattern."""
    return text.replace("\\", "").strip()


def _compared(pieces: list[str], strings: set[str]) -> bool:
    long = [_plain(piece) for piece in pieces if len(_plain(piece)) >= SHORTEST]
    return any(piece in string or string in piece for piece in long for string in strings)


def _is_torn(message: ast.expr) -> bool:
    """Whether a message has a line break in it, or stops without a full stop."""
    last = message.values[-1] if isinstance(message, ast.JoinedStr) else message
    ends_in_text = isinstance(last, ast.Constant)
    pieces = literal(message)
    return any("\n" in piece for piece in pieces) or (ends_in_text and not pieces[-1].endswith("."))


def test_every_message_is_compared_in_a_test() -> None:
    strings = _tested_strings()
    untested = [where for where, node in _messages() if not _compared(literal(node), strings)]
    assert untested == []


def test_every_message_is_one_line_and_ends_as_a_sentence() -> None:
    assert [where for where, message in _messages() if _is_torn(message)] == []
