"""Generated answers and their cache."""

from pathlib import Path

from calumma.compare.generate_answers import (
    captions_to_images,
    generate_answers,
    image_part,
    make_image_generator,
    prompt_seed,
)
from calumma.documents.document import Document, Image, Text, Turn
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


def _generate(caption: str) -> Image | None:
    return None if caption == "too hard" else Image(data=caption.encode())


def test_a_caption_is_replaced_by_an_image() -> None:
    text = "Look:\n<caption> a red cat </caption>\nand\n<CAPTION>a dog</CAPTION>"
    answer = Document(id="1", messages=(Turn("assistant", (Text(text),)),))
    assert captions_to_images(answer, _generate).content == (
        Text("Look:"),
        Image(data=b"a red cat"),
        Text("and"),
        Image(data=b"a dog"),
    )


def test_a_caption_without_an_image_and_other_parts_stay() -> None:
    image = Image(data=b"x")
    parts = (Text("a <caption>too hard</caption> b"), image, Text("\nplain\n"))
    assert captions_to_images(Document(id="1", content=parts), _generate).content == parts
