"""Names and options of the questions."""

from __future__ import annotations

from calumma.compare.questions import QUESTION_SETS, QUESTIONS, TIE


def test_every_question_has_a_unique_name() -> None:
    assert tuple(QUESTIONS) == QUESTION_SETS
    names = [question.name for questions in QUESTIONS.values() for question in questions]
    assert len(names) == len(set(names))
    assert all(len(set(q.choices)) >= 2 for questions in QUESTIONS.values() for q in questions)


def test_the_tie_is_between_the_two_sides() -> None:
    assert QUESTIONS["pairwise"][0].choices == ("first", TIE, "second")
