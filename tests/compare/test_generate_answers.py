"""Generated answers and their cache."""

from __future__ import annotations

from pathlib import Path

from calumma.compare.generate_answers import generate_answers, image_part, make_image_generator, prompt_seed
from calumma.documents.document import Document, Image, Text
from calumma.generate.model import Model
from tests.compare.conftest import PROMPTS


def test_answers_are_cached_and_an_incomplete_line_is_generated_again(model: Model, tmp_path: Path) -> None:
    prompts, cache = list(PROMPTS.values()), tmp_path / "generated" / "ours.jsonl"
    ticks: list[int] = []
    complete = generate_answers(model, prompts, cache, ticks.append, max_new_tokens=12, seed=1)
    assert [answer.id for answer in complete] == ["p1", "p2", "p3"] and ticks == [0, 3]
    lines = cache.read_text().splitlines(keepends=True)
    cache.write_text(lines[0] + lines[1][:20])
    again = generate_answers(model, prompts, cache, max_new_tokens=12, seed=1)
    assert [_content(one) for one in again] == [_content(one) for one in complete]
    assert cache.read_text().splitlines(keepends=True) == lines


def _content(document: Document) -> list[object]:
    return [part.text if isinstance(part, Text) else part.open().tobytes() for part in document.content]


def test_an_image_is_generated_for_a_caption(model: Model) -> None:
    image = make_image_generator(model, max_new_tokens=12)("a red circle")
    assert isinstance(image, Image) and image.open().size == (16, 16)
    assert make_image_generator(model, max_new_tokens=3)("no tokens for an image") is None


def test_seeds_and_image_parts() -> None:
    assert prompt_seed("p1", 0) != prompt_seed("p1", 1)
    import PIL.Image

    assert image_part(PIL.Image.new("RGB", (3, 2))).open().size == (3, 2)
