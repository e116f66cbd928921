"""What is said of still lifes is true of them, and the same for the same number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calumma.corpora.still_life import Ground, StillLife, Thing
from calumma.corpora.still_life_captions import (
    KIND_PROBABILITIES,
    make_caption,
    make_question,
    make_still_life_document,
    with_article,
)
from calumma.documents.document import Document, Text
from tests.corpora.small_object_pool import BEAR, SMALL

BALL, BOX = Thing("red circle", "red"), Thing("green square", "green")
WHITE = Ground("plain", "white")
PAIR = StillLife(WHITE, "row", (BALL, BEAR))
FOUR = StillLife(Ground("striped", "black", "white"), "corners", (BALL, BEAR, BOX))


def all_of(made: object) -> set[str]:
    """Return all results of a random function, over many seeds."""
    return {made(np.random.default_rng(seed)) for seed in range(250)}  # type: ignore[operator]


def test_captions_by_hand() -> None:
    assert all_of(lambda random: make_caption(PAIR, random)) == {
        "a red circle left of a bear, on a plain white ground",
        "a bear right of a red circle, on a plain white ground",
    }
    assert all_of(lambda random: make_caption(replace(PAIR, layout="column"), random)) == {
        "a red circle above a bear, on a plain white ground",
        "a bear below a red circle, on a plain white ground",
    }
    assert all_of(lambda random: make_caption(StillLife(WHITE, "one", (BEAR,)), random)) == {
        "a bear on a plain white ground",
        "a plain white ground with a bear on it",
    }
    many = all_of(lambda random: make_caption(FOUR, random))
    assert len(many) == 12
    assert (
        "a red circle at the top left, a bear at the top right and a green square at the bottom "
        "left, on a striped black and white ground"
    ) in many


def test_answers_by_hand() -> None:
    questions = all_of(lambda random: make_question(PAIR, SMALL, random))
    assert {
        ("How many things are there?", "two"),
        ("What is on the left?", "a red circle"),
        ("Where is the bear?", "on the right"),
        ("What is the ground like?", "plain and white"),
        ("Is there a bear?", "yes"),
        ("What is left of the bear?", "a red circle"),
        ("Is the red circle right of the bear?", "no"),
    } <= questions
    assert {a for q, a in questions if q in ("Is there an oak?", "Is there a blue ring?")} <= {"no"}
    striped = all_of(lambda random: make_question(FOUR, SMALL, random))
    assert ("What is the ground like?", "striped and black and white") in striped


@pytest.mark.parametrize(
    ("thing", "expected"), [("owl", "an owl"), ("unicorn", "a unicorn"), ("cherries", "cherries"), ("bus", "a bus")]
)
def test_articles(thing: str, expected: str) -> None:
    assert with_article(thing) == expected


def made(count: int, seed: int = 3) -> list[Document]:
    return [make_still_life_document(number, seed, SMALL, 32) for number in range(count)]


def test_a_document_follows_from_seed_and_number() -> None:
    assert made(40) == made(40)
    assert made(40)[:10] == made(10)
    assert [d.content for d in made(10)] != [d.content for d in made(10, seed=4)]


def test_kinds_shares_splits_and_licenses() -> None:
    documents = made(400)
    for kind, share in KIND_PROBABILITIES.items():
        found = [d for d in documents if d.attributes["kind"] == kind]
        assert abs(len(found) / 400 - share) < 0.08
        assert all(bool(d.messages) == (kind == "question") for d in found)
    for one in documents:
        held_out = "owl" in one.text or "owl" in one.attributes["things"].split("; ")
        assert held_out <= (one.attributes["split"] == "held-out")
        assert one.license in ("CC0-1.0", "CC0-1.0 AND MIT", "MIT")
        assert all(image.open().size == (32, 32) for image in one.images)


def test_a_page_describes_each_change_before_its_image() -> None:
    pages = [d for d in made(300) if d.attributes["kind"] == "page"]
    for page in pages:
        kinds = [isinstance(part, Text) for part in page.content]
        assert kinds == [True, False] * len(page.images)
        assert 2 <= len(page.images) <= 3
        first, second = page.images[:2]
        assert first.read_bytes() != second.read_bytes()
    text = " ".join(page.text for page in pages)
    for change in ("change places.", "In place of the ", "Now the same on a "):
        assert change in text
