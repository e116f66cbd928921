"""One answer as pieces, against what the engine chose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import PIL.Image
import pytest

from calumma.generate.async_engine import AsyncEngine
from calumma.generate.model import Model
from calumma.serve.moderation import ContentFilter
from calumma.serve.output_processor import (
    Begun,
    Chosen,
    Drawn,
    Ended,
    Growing,
    Narrator,
    Piece,
    Said,
)
from tests.images import noise
from tests.serve.conftest import ALONE
from tests.serve.test_moderation import NoWord


@pytest.fixture(scope="module")
def live(model: Model) -> Iterator[AsyncEngine]:
    made = AsyncEngine(model)
    yield made
    made.close()


def as_bytes(image: PIL.Image.Image) -> bytes:
    return image.tobytes()


def result(
    live: AsyncEngine,
    seed: int,
    stops: Sequence[str] = (),
    filters: Sequence[ContentFilter] = (),
    **more: Any,
) -> list[Piece]:
    answer = live.generate(["a red ", noise(1)], seed=seed, **{**ALONE, **more})
    return list(Narrator(answer, as_bytes, stops, filters).pieces())


def said(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Said))


def last(pieces: list[Piece]) -> Ended:
    end = pieces[-1]
    assert isinstance(end, Ended)
    return end


def test_pieces_are_the_answer_in_order(live: AsyncEngine, model: Model, drawing_seed: int) -> None:
    alone = model.generate(["a red ", noise(1)], seed=drawing_seed, **ALONE)
    pieces = result(live, drawing_seed)
    parts = [p for p in alone.parts if p]
    assert said(pieces) == "".join(part for part in parts if isinstance(part, str))
    drawn = [piece for piece in pieces if isinstance(piece, Drawn)]
    assert [one.png for one in drawn] == [p.tobytes() for p in parts if not isinstance(p, str)]
    assert [one.number for one in drawn] == list(range(len(drawn)))
    kinds = [type(piece) for piece in pieces if not isinstance(piece, Chosen)]
    begun = kinds.index(Begun)
    assert kinds[begun : begun + 4] == [Begun, Growing, Growing, Drawn]
    assert [
        id_ for piece in pieces if isinstance(piece, Chosen) for id_ in piece.ids
    ] == alone.token_ids
    end = last(pieces)
    assert (end.reason, end.num_ids) == (alone.finish_reason, len(alone.token_ids))
    assert end.sample.token_ids == alone.token_ids


def test_a_stop_word_ends_it_at_an_id_that_does_not_depend_on_chance(live: AsyncEngine) -> None:
    whole = said(result(live, 1, max_images=0))
    word = whole[6:9]
    counts = set()
    for _ in range(5):
        pieces = result(live, 1, [word], max_images=0)
        assert said(pieces) == whole[: whole.index(word)]
        assert last(pieces).reason == "stop"
        counts.add(last(pieces).num_ids)
    assert len(counts) == 1


def test_text_that_does_not_pass_ends_it_untold(live: AsyncEngine) -> None:
    whole = said(result(live, 1, max_images=0))
    pieces = result(live, 1, filters=[NoWord(whole[3:6])], max_images=0)
    assert said(pieces) == ""
    assert last(pieces).reason == "content_filter"
    passed = result(live, 1, filters=[NoWord("no such word")], max_images=0)
    assert said(passed) == whole


def test_a_image_that_does_not_pass_is_never_shown(live: AsyncEngine, drawing_seed: int) -> None:
    class NoImage(NoWord):
        def passes_image(self, image: PIL.Image.Image) -> bool:
            return False

    pieces = result(live, drawing_seed, filters=[NoImage("no such word")])
    assert not any(isinstance(piece, Drawn | Growing) for piece in pieces)
    assert last(pieces).reason == "content_filter"


def test_an_answer_that_is_cancelled_ends(live: AsyncEngine) -> None:
    answer = live.generate(["a"], seed=1, **{**ALONE, "max_new_tokens": 100})
    answer.cancel()
    assert last(list(Narrator(answer, as_bytes).pieces())).reason in ("abort", "stop", "length")


def test_a_image_that_is_whole_is_finished_and_one_that_grows_is_not(
    live: AsyncEngine, drawing_seed: int
) -> None:
    answer = live.generate(["a red ", noise(1)], seed=drawing_seed, **ALONE)
    pieces = list(Narrator(answer, as_bytes, finish=lambda image: b"finished").pieces())
    assert {piece.png for piece in pieces if isinstance(piece, Drawn)} == {b"finished"}
    growing = [piece for piece in pieces if isinstance(piece, Growing)]
    assert growing
    assert all(piece.png != b"finished" for piece in growing)
