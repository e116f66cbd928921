"""Our own answers, kept as they come."""

from __future__ import annotations

from pathlib import Path

from calumma.compare.generate_answers import (
    generate_answers,
    image_part,
    make_image_generator,
    prompt_seed,
)
from calumma.documents.document import Document, Image, Text
from calumma.generate.model import Model
from tests.compare.conftest import PROMPTS


def test_answers_are_kept_and_a_half_line_is_asked_again(model: Model, tmp_path: Path) -> None:
    prompts, kept = list(PROMPTS.values()), tmp_path / "made" / "ours.jsonl"
    ticks: list[int] = []
    whole = generate_answers(model, prompts, kept, ticks.append, max_new_tokens=12, seed=1)
    assert [answer.id for answer in whole] == ["p1", "p2", "p3"] and ticks == [0, 3]
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text(lines[0] + lines[1][:20])
    again = generate_answers(model, prompts, kept, max_new_tokens=12, seed=1)
    assert [_told(one) for one in again] == [_told(one) for one in whole]
    assert kept.read_text().splitlines(keepends=True) == lines


def _told(document: Document) -> list[object]:
    return [
        part.text if isinstance(part, Text) else part.open().tobytes() for part in document.content
    ]


def test_a_caption_is_drawn(model: Model) -> None:
    drawn = make_image_generator(model, max_new_tokens=12)("a red circle")
    assert isinstance(drawn, Image) and drawn.open().size == (16, 16)
    assert make_image_generator(model, max_new_tokens=3)("no room for a picture") is None


def test_seeds_and_pictures() -> None:
    assert prompt_seed("p1", 0) != prompt_seed("p1", 1)
    import PIL.Image

    assert image_part(PIL.Image.new("RGB", (3, 2))).open().size == (3, 2)
