from __future__ import annotations

import pytest

from calumma.evaluate.cider import cider, words
from calumma.evaluate.vlm_files import Question
from calumma.evaluate.vlm_metrics import (
    Answered,
    answer_scores,
    blind_answers,
    caption_scores,
)
from tests.evaluate.oracle import picture

RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))


def _answered(asked: list[Question], written: list[str], training: list[Question]) -> Answered:
    return Answered(name="x", asked=asked, written=written, training=training, num_shots=2, seed=0)


def test_captions_stand_beside_anothers_and_the_nearest_pictures() -> None:
    asked = [Question(RED, "", ("a red dog", "the red")), Question(BLUE, "", ("a blue cat",))]
    training = [Question(picture((250, 9, 9)), "", ("a red dog",)), Question(BLUE, "", ("no",))]
    [figure], scores = caption_scores(_answered(asked, ["A red dog.", "a cat"], training))
    references = [[words(text) for text in each.given] for each in asked]
    by_hand = cider([["a", "red", "dog"], ["a", "cat"]], references)
    assert scores == pytest.approx([100 * score for score in by_hand])
    assert (figure.name, figure.n) == ("x_cider", 2)
    assert figure.value == pytest.approx(50 * sum(by_hand))
    other = cider([words("a blue cat"), words("a red dog")], references)
    near = cider([["a", "red", "dog"], ["no"]], references)
    assert figure.baselines == {
        "another's": pytest.approx(50 * sum(other)),
        "nearest picture's": pytest.approx(50 * sum(near)),
    }  # fmt: skip
    assert figure.baseline == max(figure.baselines.values())
    assert figure.interval is not None and figure.interval[0] <= figure.value


def test_answers_are_told_over_all_and_by_kind_beside_those_that_do_not_look() -> None:
    asked = [
        Question(RED, "is it red?", ("yes",) * 10, "yes/no"),
        Question(RED, "is it blue?", ("no",) * 10, "yes/no"),
        Question(RED, "what is it?", ("dog",) * 2 + ("cat",) * 8, "other"),
    ]
    every, other, yes_no = answer_scores(_answered(asked, ["Yes.", "yes", "a dog"], []))[0]
    assert (every.name, every.n) == ("x_accuracy", 3)
    assert every.value == pytest.approx((1 + 0 + 0.6) / 3)
    assert (other.name, other.value) == ("x_accuracy_other", pytest.approx(0.6))
    assert (yes_no.name, yes_no.value, yes_no.n) == ("x_accuracy_yes_no", 0.5, 2)
    assert yes_no.baselines == {"commonest answer": 0.5, "nearest question": 1.0}
    assert every.note.endswith("know these very answers")


def test_without_looking_the_nearest_question_is_the_one_that_begins_the_same() -> None:
    known = [
        Question(RED, "what colour is it?", ("red",)),
        Question(RED, "what shape is it?", ("square",)),
        Question(RED, "what shape is that?", ("square",)),
        Question(RED, "is it red?", ("Yes",)),
    ]
    asked = [Question(RED, text, ("?",)) for text in ("what colour is that?", "is it big?", "who?")]
    assert blind_answers(asked, known) == {
        "commonest answer": ["square"] * 3, "nearest question": ["red", "yes", "square"],
    }  # fmt: skip
