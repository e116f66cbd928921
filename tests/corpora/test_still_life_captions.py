"""Captions and questions of still lifes are true, complete where asked, and held out where named."""

import re

import numpy as np
import pytest

from calumma.corpora.still_life import StillLife, Thing, sample_still_life
from calumma.corpora.still_life_captions import (
    QUESTION_KINDS,
    Question,
    Wordings,
    arrangement_wordings,
    list_things,
    make_caption,
    make_questions,
    with_article,
)

RED, BANANA, BUS = Thing("circle", "red"), Thing("banana"), Thing("bus")
ROW = StillLife("orange", "row", (RED, BANANA))
TRIPLE = StillLife("orange", "triple", (RED, BANANA, BUS))


def captions(scene: StillLife, wordings: Wordings = "all", *, complete: bool = False) -> set[str]:
    """Return the captions of many draws."""
    random = np.random.default_rng(0)
    return {make_caption(scene, random, wordings=wordings, complete=complete) for _ in range(4000)}


def test_captions_of_a_row_by_hand() -> None:
    background = "on an orange background"
    assert {f"a red circle left of a banana {background}", f"a banana to the right of a red circle {background}"} <= (
        captions(ROW, complete=True)
    )
    assert {
        f"{background}, a banana with a red circle on its left",
        "an orange background with on the right a banana and on the left a red circle",
        "from right to left a banana and a red circle, the background is orange",
    } <= captions(ROW)
    assert captions(ROW, "plain") < captions(ROW)
    assert "a red circle left of a banana, with orange behind" in captions(ROW, complete=True)
    assert all("orange" in caption for caption in captions(ROW, complete=True))
    without = {caption for caption in captions(ROW) if "orange" not in caption}
    assert "a red circle on the left and a banana on the right" in without


def test_captions_of_counts_and_single_things_by_hand() -> None:
    assert "three buses in a row on a white background" in captions(StillLife("white", "triple", (BUS,) * 3))
    single = StillLife("white", "single", (BANANA,), "small")
    assert {"a small banana", "a banana on a white background", "a white background with a small banana"} <= (
        captions(single)
    )
    assert all("small" in caption and "white" in caption for caption in captions(single, complete=True))


@pytest.mark.parametrize("layout", ["single", "row", "column", "triple", "corners", "count"])
def test_held_out_wordings_never_occur_in_training_but_all_their_words_do(layout: str) -> None:
    random = np.random.default_rng(3)
    for _ in range(3):
        scene = sample_still_life(random, layout)
        seen, held_out = captions(scene), captions(scene, "held-out")
        assert not seen & held_out
        words = {word.strip(",") for caption in seen for word in caption.split()}
        new = {word.strip(",") for caption in held_out for word in caption.split()}
        assert new <= words


def test_every_arrangement_names_every_place_once() -> None:
    for layout, count in (("row", 2), ("column", 2), ("triple", 3)):
        for wording in arrangement_wordings(layout):
            assert sorted(wording.format(*"xyz"[:count]).count(name) for name in "xyz"[:count]) == [1] * count


def questions(scene: StillLife, **options: bool) -> dict[str, set[tuple[str, str]]]:
    """Return the questions and answers of many draws by kind."""
    found: dict[str, set[tuple[str, str]]] = {}
    for seed in range(300):
        for question in make_questions(scene, np.random.default_rng(seed), **options):
            found.setdefault(question.kind, set()).add((question.text, question.answer))
    return found


def test_answers_by_hand() -> None:
    found = questions(ROW)
    assert ("What color is the background?", "orange") in found["background"]
    assert ("How many things are there?", "two") in found["count"]
    assert ("Is there a red circle?", "yes") in found["existence"]
    assert ("What is on the left?", "a red circle") in found["what"]
    assert ("Where is the banana?", "on the right") in found["where"]
    assert ("What color is the circle?", "red") in found["color"]
    assert ("What is left of the banana?", "a red circle") in found["relation"]
    assert ("Is the red circle right of the banana?", "no") in found["relation check"]
    assert ("How many banana are there?", "one") not in found["count of"]
    assert ("How many bananas are there?", "one") in found["count of"]
    single = questions(StillLife("white", "single", (BANANA,), "small"))
    assert ("Is the banana large or small?", "small") in single["size"]
    assert "color" not in single
    counts = questions(StillLife("white", "triple", (BUS,) * 3))
    assert ("How many buses are there?", "three") in counts["count of"]
    assert not {"what", "where", "relation"} & set(counts)


def test_things_are_listed_place_by_place() -> None:
    assert list_things(ROW) == "a red circle on the left and a banana on the right"
    assert list_things(TRIPLE) == "a red circle on the left, a banana in the middle and a bus on the right"
    assert list_things(StillLife("white", "single", (BANANA,), "small")) == "a small banana in the middle"
    corners = StillLife("white", "corners", (RED, None, BANANA, BUS))
    assert (
        list_things(corners)
        == "a red circle at the top left, a banana at the bottom left and a bus at the bottom right"
    )


def test_steps_find_the_things_of_a_question() -> None:
    found: dict[str, set[str]] = {}
    counts = StillLife("white", "corners", (BANANA, None, RED, BUS))
    for scene in (ROW, counts):
        for seed in range(300):
            for question in make_questions(scene, np.random.default_rng(seed)):
                found.setdefault(question.text, set()).add(question.full_answer)
    row = "a red circle on the left and a banana on the right; now"
    assert found["Where is the banana?"] >= {f"{row} a red circle on the left and it on the right: on the right"}
    assert found["Is the red circle right of the banana?"] == {f"{row} it on the left and a banana on the right: no"}
    assert found["Is there a banana?"] >= {f"{row} a red circle on the left and it on the right: yes"}
    corners = "a banana at the top left, a red circle at the bottom left and a bus at the bottom right; now"
    assert found["What color is the circle?"] >= {
        f"{corners} a banana at the top left, it at the bottom left and a bus at the bottom right: red"
    }
    assert found["What is on the left?"] == {"a red circle"}
    assert found["How many things are there?"] == {"two", "three"}
    equal = StillLife("white", "column", (BUS, BUS))
    answers = {
        question.full_answer
        for seed in range(300)
        for question in make_questions(equal, np.random.default_rng(seed))
        if question.kind == "count of"
    }
    buses = "a bus at the top and a bus at the bottom; now"
    assert answers == {f"{buses} it at the top and it at the bottom: two", f"{buses} {buses[:-5]}: no"}


def test_steps_are_not_judged() -> None:
    question = Question("where", "Where is the star?", "on the left", 9, "a star on the left; now it on the left")
    assert question.accepts("On the left.") and question.accepts(question.full_answer)
    assert not question.accepts("it on the left: on the right")
    assert not question.accepts("on the right on the left")


def test_a_tenth_of_the_captions_names_the_thing_alone() -> None:
    scene = StillLife("white", "single", (BANANA,), "small")
    written = [make_caption(scene, np.random.default_rng(number)) for number in range(2000)]
    brief = sum("white" not in caption and "small" not in caption for caption in written)
    assert 0.07 < brief / len(written) < 0.13
    assert "a banana" in written


def test_answers_about_existence_are_balanced_and_true() -> None:
    answers = []
    for seed in range(400):
        random = np.random.default_rng(seed)
        scene = sample_still_life(random)
        for question in make_questions(scene, random):
            if question.kind == "existence":
                match = re.search(r"\ban? (.+?)(?: in the picture)?\?", question.text)
                assert match is not None
                thing = match[1]
                assert (question.answer == "yes") == (thing in {t.name for t in scene.things})
                answers.append(question.answer)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_all_kinds_occur_and_held_out_questions_differ() -> None:
    random = np.random.default_rng(0)
    scenes = [sample_still_life(random) for _ in range(200)]
    found: list[Question] = [q for scene in scenes for q in make_questions(scene, random)]
    assert {question.kind for question in found} == set(QUESTION_KINDS)
    assert all(question.num_options >= 2 for question in found)
    held_out = questions(ROW, held_out=True)
    seen = questions(ROW)
    for kind in held_out:
        assert not {text for text, _ in held_out[kind]} & {text for text, _ in seen[kind]}


def test_articles() -> None:
    assert (with_article("anchor"), with_article("bus")) == ("an anchor", "a bus")
