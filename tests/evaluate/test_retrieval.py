from __future__ import annotations

import pytest

from calumma.errors import EvaluationError
from calumma.evaluate.held_out import Options
from calumma.evaluate.retrieval import draw_candidates, retrieval
from tests.evaluate.oracle import LETTERS, oracle_held_out

NAMES = [
    "retrieval_text_given_image",
    "retrieval_text_given_image_plain",
    "retrieval_image_given_text",
    "retrieval_image_given_text_plain",
]


def test_who_knows_finds_every_one() -> None:
    figures = retrieval(oracle_held_out(LETTERS, 5.0), Options())
    assert [figure.name for figure in figures] == NAMES
    assert [figure.value for figure in figures] == [1.0] * 4
    assert figures[0].n == 10
    assert figures[0].baseline == 0.1


def test_who_knows_nothing_is_right_one_time_in_ten() -> None:
    figures = retrieval(oracle_held_out(LETTERS, 0.0), Options())
    assert [figure.value for figure in figures] == pytest.approx([0.1] * 4)


def test_candidates_begin_with_the_own_place_and_have_ten_different_texts() -> None:
    texts = list(LETTERS + "aab" + "klm")
    for own, row in enumerate(draw_candidates(texts, seed=1)):
        assert row[0] == own
        assert len({texts[place] for place in row}) == 10


def test_the_same_seed_draws_the_same_candidates() -> None:
    texts = [*LETTERS, *"klmnop"]
    assert draw_candidates(texts, 1) == draw_candidates(texts, 1) != draw_candidates(texts, 2)


def test_nine_texts_are_too_few() -> None:
    with pytest.raises(EvaluationError, match="retrieval: found 9 different texts among 9 docu"):
        retrieval(oracle_held_out(LETTERS[:9], 0.0), Options())
