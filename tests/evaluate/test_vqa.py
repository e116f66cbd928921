from __future__ import annotations

import pytest

from calumma.evaluate.vqa import normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("people", "counts"),
    # k of ten agree: k times the others are k - 1, and 10 - k times they are k.
    [(0, 0.0), (1, 9 * 1 / 3 / 10), (2, (2 * 1 / 3 + 8 * 2 / 3) / 10),
     (3, (3 * 2 / 3 + 7) / 10), (4, 1.0), (10, 1.0)],
)  # fmt: skip
def test_an_answer_counts_by_how_many_of_ten_people_gave_it(people: int, counts: float) -> None:
    given = ["red"] * people + [f"color {n}" for n in range(10 - people)]
    assert vqa_accuracy("Red.", given) == pytest.approx(counts)


def test_one_person_is_agreed_with_or_not() -> None:
    assert vqa_accuracy("a circle", ["circle"]) == 1.0
    assert vqa_accuracy("square", ["circle"]) == 0.0


@pytest.mark.parametrize(
    ("said", "compared"),
    [
        ("The Dog", "dog"),
        ("an apple a day", "apple day"),
        ("Two", "2"),
        ("none", "0"),
        ("yes.", "yes"),
        ("2.5", "2.5"),
        ("1,000", "1000"),
        ("red,blue", "red blue"),
        ("red/blue; green!", "red blue green"),
        ("12:30", "12:30"),
        ("dog's", "dog's"),
        ("it isn't".replace("'", ""), "it isn't"),
        ("doesn't".replace("'", ""), "doesn't"),
        ("well", "well"),
        ("  new\n york\t", "new york"),
        ("", ""),
    ],
)
def test_answers_are_compared_in_one_form(said: str, compared: str) -> None:
    assert normalize_answer(said) == compared
    assert normalize_answer(compared) == compared
