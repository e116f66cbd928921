"""The questions hold together."""

from __future__ import annotations

from calumma.compare.questions import QUESTION_SETS, QUESTIONS, TIE


def test_every_kind_has_questions_with_names_of_their_own() -> None:
    assert tuple(QUESTIONS) == QUESTION_SETS
    names = [question.name for told in QUESTIONS.values() for question in told]
    assert len(names) == len(set(names))
    assert all(len(set(q.choices)) >= 2 for told in QUESTIONS.values() for q in told)


def test_the_tie_stands_between_the_two_sides() -> None:
    assert QUESTIONS["pairwise"][0].choices == ("first", TIE, "second")
