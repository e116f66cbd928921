"""The text of every error message is compared in a test.

A message counts as compared if one of its literal fragments contains a string literal of a test
(such as a `match=` pattern) or is contained in one.
"""

import ast
import re
from collections.abc import Iterator

import calumma.errors
from tests.style.tree import PACKAGE, TESTS, literal, parsed, sources

ERRORS = {
    name
    for name, value in vars(calumma.errors).items()
    if isinstance(value, type) and issubclass(value, calumma.errors.CalummaError)
}
MIN_LENGTH = 12
"""Shorter fragments prove nothing: " expected " is in every message."""


def _messages() -> Iterator[tuple[str, ast.expr]]:
    """Yield the location of each message and its expression."""
    for path in sources():
        for node in ast.walk(parsed(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id in ERRORS and node.args and literal(node.args[0]):
                if _is_rename(node.args[0]):
                    continue  # tests/test_renamed.py compares these
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node.args[0]


def _is_rename(message: ast.expr) -> bool:
    """Return whether a message is that of `rename_message`."""
    names = (node.id for node in ast.walk(message) if isinstance(node, ast.Name))
    return "rename_message" in names


def _tested_strings() -> set[str]:
    strings = set()
    for path in sources(TESTS):
        if path.parent.name == "style":
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant | ast.JoinedStr):
                for fragment in literal(node):
                    strings.update(map(_plain, re.split(r"\.[*+]", fragment)))
    return {string for string in strings if len(string) >= MIN_LENGTH}


def _plain(text: str) -> str:
    """Return a text without the backslashes of a regular expression."""
    return text.replace("\\", "").strip()


def _compared(fragments: list[str], strings: set[str]) -> bool:
    plain = [text for text in map(_plain, fragments) if len(text) >= MIN_LENGTH]
    return any(text in string or string in text for text in plain for string in strings)


def _is_malformed(message: ast.expr) -> bool:
    """Return whether a message has a line break or does not end with a full stop."""
    last = message.values[-1] if isinstance(message, ast.JoinedStr) else message
    ends_in_text = isinstance(last, ast.Constant)
    fragments = literal(message)
    has_break = any("\n" in fragment for fragment in fragments)
    return has_break or (ends_in_text and not fragments[-1].endswith("."))


def test_every_message_is_compared_in_a_test() -> None:
    strings = _tested_strings()
    untested = [where for where, node in _messages() if not _compared(literal(node), strings)]
    assert untested == []


def test_every_message_is_one_line_and_ends_with_a_full_stop() -> None:
    assert [where for where, message in _messages() if _is_malformed(message)] == []
