"""Columns of turns: lists of turns, pairs, questions with answers."""

from typing import Any

import pytest

from calumma.documents.record_columns import ColumnReader
from calumma.documents.turn_columns import have_marks, normalize_turns, take_turns


def turns(columns: dict[str, Any]) -> list[tuple[str, Any, str]] | None:
    found = take_turns(columns, ColumnReader("x"))
    return None if found is None else [(turn["role"], turn["content"], turn["column"]) for turn in found]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": "a"}, None),
        ({"question": "Q"}, None),
        ({"question": "Q", "answer": ""}, None),
        ({"prompt": "P", "label": "x"}, None),
        ({"query": "Q", "label": 3}, None),
        ({"question": "Q", "answer": "A"}, [("user", "Q", "question"), ("assistant", "A", "answer")]),
        ({"problem": "Q", "solution": "A"}, [("user", "Q", "problem"), ("assistant", "A", "solution")]),
        ({"question": "Q", "answers": [{"answer": "A"}]}, [("user", "Q", "question"), ("assistant", "A", "answers")]),
        ({"dialog": [{"human": "Q", "gpt": "A"}]}, [("user", "Q", "dialog"), ("assistant", "A", "dialog")]),
        ({"conversation": [{"role": "user", "content": "Q"}]}, [("user", "Q", "conversation")]),
    ],
)
def test_turns_are_taken_from_the_columns(columns: dict[str, Any], expected: list[Any] | None) -> None:
    assert turns(columns) == expected


def test_other_columns_stay() -> None:
    columns = {"question": "Q", "answer": "A", "response": "B", "input": "I"}
    turns(columns)
    assert columns == {"response": "B", "input": "I"}


def test_roles_of_other_tools_are_renamed() -> None:
    assert normalize_turns([{"from": "gpt", "value": "a"}]) == [{"role": "assistant", "content": "a"}]
    assert normalize_turns([{"role": "human", "from": "x", "content": "a"}]) == [
        {"role": "user", "from": "x", "content": "a"}
    ]
    assert normalize_turns("no list") == "no list"


def test_lists_of_turns_have_marks_and_pairs_have_none() -> None:
    assert have_marks({"conversations": [{"from": "human", "value": "a"}]})
    assert not have_marks({"qa_pairs": [{"question": "Q", "answer": "A"}]})
    assert not have_marks({"question": "Q"})
