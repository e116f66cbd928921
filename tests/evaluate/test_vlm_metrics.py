import pytest

from calumma.evaluate.cider import cider, tokenize_caption
from calumma.evaluate.vlm_files import VlmExample
from calumma.evaluate.vlm_metrics import (
    VlmResponses,
    captioning_scores,
    normalize_answer,
    question_only_baselines,
    vqa_accuracy,
    vqa_scores,
)
from tests.evaluate.oracle import plain_image

RED, BLUE = plain_image((255, 0, 0)), plain_image((0, 0, 255))


def _answered(questions: list[VlmExample], written: list[str], training: list[VlmExample]) -> VlmResponses:
    return VlmResponses(name="x", examples=questions, answers=written, train=training, num_fewshot=2, seed=0)


def test_captions_have_another_and_the_nearest_image_as_baselines() -> None:
    questions = [VlmExample(RED, "", ("a red dog", "the red")), VlmExample(BLUE, "", ("a blue cat",))]
    training = [VlmExample(plain_image((250, 9, 9)), "", ("a red dog",)), VlmExample(BLUE, "", ("no",))]
    [metric], scores = captioning_scores(_answered(questions, ["A red dog.", "a cat"], training))
    references = [[tokenize_caption(text) for text in each.references] for each in questions]
    by_hand = cider([["a", "red", "dog"], ["a", "cat"]], references)
    assert scores == pytest.approx([100 * score for score in by_hand])
    assert (metric.name, metric.n) == ("x_cider", 2)
    assert metric.value == pytest.approx(50 * sum(by_hand))
    other = cider([tokenize_caption("a blue cat"), tokenize_caption("a red dog")], references)
    near = cider([["a", "red", "dog"], ["no"]], references)
    assert metric.baselines == {
        "another image's caption": pytest.approx(50 * sum(other)),
        "nearest image's caption": pytest.approx(50 * sum(near)),
    }  # fmt: skip
    assert metric.baseline == max(metric.baselines.values())
    assert metric.interval is not None and metric.interval[0] <= metric.value


def test_answers_are_scored_over_all_and_by_type_with_blind_baselines() -> None:
    questions = [
        VlmExample(RED, "is it red?", ("yes",) * 10, "yes/no"),
        VlmExample(RED, "is it blue?", ("no",) * 10, "yes/no"),
        VlmExample(RED, "what is it?", ("dog",) * 2 + ("cat",) * 8, "other"),
    ]
    every, other, yes_no = vqa_scores(_answered(questions, ["Yes.", "yes", "a dog"], []))[0]
    assert (every.name, every.n) == ("x_accuracy", 3)
    assert every.value == pytest.approx((1 + 0 + 0.6) / 3)
    assert (other.name, other.value) == ("x_accuracy_other", pytest.approx(0.6))
    assert (yes_no.name, yes_no.value, yes_no.n) == ("x_accuracy_yes_no", 0.5, 2)
    assert yes_no.baselines == {"most common answer": 0.5, "nearest question": 1.0}
    assert every.note.endswith("know these very answers")


def test_without_looking_the_nearest_question_is_the_one_that_begins_the_same() -> None:
    known = [
        VlmExample(RED, "what color is it?", ("red",)),
        VlmExample(RED, "what shape is it?", ("square",)),
        VlmExample(RED, "what shape is that?", ("square",)),
        VlmExample(RED, "is it red?", ("Yes",)),
    ]
    questions = [VlmExample(RED, text, ("?",)) for text in ("what color is that?", "is it big?", "who?")]
    assert question_only_baselines(questions, known) == {
        "most common answer": ["square"] * 3, "nearest question": ["red", "yes", "square"],
    }  # fmt: skip


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
