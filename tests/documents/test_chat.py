"""Conversations as questions and answers."""

from __future__ import annotations

import pytest

from calumma.documents.chat import Exchange, as_turns, exchanges
from calumma.documents.document import Document, Role, Text, Turn
from calumma.errors import DocumentError


def talk(*turns: tuple[Role, str]) -> Document:
    """A conversation of plain texts."""
    return Document(id="t", messages=tuple(Turn(role, (Text(text),)) for role, text in turns))


def test_system_text_joins_the_turn_of_the_user_after_it() -> None:
    document = talk(("system", "Be brief."), ("user", "Who?"), ("assistant", "I."))
    assert as_turns(document) == (
        Turn("user", (Text("Be brief."), Text("Who?"))),
        Turn("assistant", (Text("I."),)),
    )


def test_neighbouring_turns_of_one_side_become_one() -> None:
    document = talk(("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"))
    assert exchanges(document) == (Exchange((Text("a"), Text("b")), (Text("c"), Text("d"))),)


def test_each_question_is_paired_with_its_answer() -> None:
    document = talk(("user", "1"), ("assistant", "one"), ("user", "2"), ("assistant", "two"))
    assert exchanges(document) == (
        Exchange((Text("1"),), (Text("one"),)),
        Exchange((Text("2"),), (Text("two"),)),
    )


def test_a_plain_document_answers_nobody() -> None:
    document = Document(id="p", content=(Text("a"),))
    assert as_turns(document) == (Turn("assistant", (Text("a"),)),)
    assert exchanges(document) == (Exchange((), (Text("a"),)),)


def test_an_assistant_who_speaks_first_is_refused() -> None:
    with pytest.raises(DocumentError) as caught:
        as_turns(talk(("assistant", "hello")))
    assert str(caught.value) == (
        "document t: the assistant speaks first; wanted a turn of the user before its answer. "
        "Add the question, or leave the turn out."
    )


def test_a_question_without_an_answer_is_refused() -> None:
    with pytest.raises(DocumentError) as caught:
        exchanges(talk(("user", "1"), ("assistant", "one"), ("user", "2")))
    assert str(caught.value) == (
        "document t: the last turn is the user's; wanted the assistant's answer after it. "
        "Add the answer, or leave the turn out."
    )
