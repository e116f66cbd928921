from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from calumma.errors import EvaluationError
from calumma.evaluate.held_out import HeldOut, Options
from calumma.evaluate.pictured_files import Published, Question
from calumma.evaluate.pictured_tasks import (
    PICTURED,
    pictured_benchmark,
    prompt_of,
    shots_that_fit,
)
from calumma.generate.model import Model
from tests.evaluate.oracle import picture
from tests.evaluate.published import write_pictured


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictured(tmp_path_factory.mktemp("pictured"))


@pytest.mark.parametrize("name", PICTURED)
def test_every_benchmark_gives_a_figure_with_its_prompts(
    name: str, model: Model, published: Path
) -> None:
    held_out = HeldOut(model, [])
    figures = pictured_benchmark(name, held_out, Options(data=published, show=1))
    assert figures[0].name.startswith(name)
    assert (figures[0].n, figures[0].interval is not None) == (2, True)
    assert len(figures[0].baselines) >= 1
    [shown] = held_out.shown
    pictures = [part for part in shown.prompt if isinstance(part, PIL.Image.Image)]
    assert len(pictures) == (1 if name == "flickr30k" else 3)


def test_a_perfect_writer_gets_everything_right(
    model: Model, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Said:
        def __init__(self, text: str) -> None:
            self.parts = [f" {text}\nand more"]

    def knows(prompts: Any, **options: Any) -> list[Said]:
        assert (options["max_new_tokens"], options["max_images"]) == (10, 0)
        # The picture that is asked about is the last one.
        seen = [[p for p in parts if isinstance(p, PIL.Image.Image)][-1] for parts in prompts]
        return [Said("Red" if each.convert("RGB").getpixel((8, 8))[0] > 99 else "blue.")  # type: ignore[index, operator]
                for each in seen]  # fmt: skip

    monkeypatch.setattr(model, "generate_batch", knows)
    [figure, _] = pictured_benchmark("vqav2", HeldOut(model, []), Options(data=published))
    assert figure.value == 1.0
    assert figure.baselines == {"commonest answer": 0.5, "nearest question": 0.5}


def test_a_prompt_shows_examples_with_their_answers_line_by_line() -> None:
    example = Question(picture(), "what is it?", ("square", "box", "square"))
    asked = Question(picture(), "is it red?", ("yes",))
    texts = [p for p in prompt_of(asked, [example], "", captions=False) if isinstance(p, str)]
    assert texts == ["Question: what is it? Answer: square\n", "Question: is it red? Answer:"]
    texts = [p for p in prompt_of(asked, [example], "", captions=True) if isinstance(p, str)]
    assert texts == ["square\n"]
    texts = [p for p in prompt_of(asked, [example], "It is", captions=True) if isinstance(p, str)]
    assert texts == ["It is square\n", "It is"]


def test_examples_that_a_row_has_no_room_for_are_left_out(model: Model) -> None:
    long = Question(picture(), "why? " * 8, ("x",))
    kind, asked = PICTURED["vqav2"], [Question(picture(), "why?", ("x",))]
    fitting = shots_that_fit(model, asked, [long] * 6, kind, Options(shots=6))
    assert 0 < len(fitting) < 6
    assert shots_that_fit(model, asked, [long], kind, Options(shots=0)) == []
    with pytest.raises(EvaluationError) as caught:
        shots_that_fit(model, [Question(picture(), "?" * 120, ("x",))], [], kind, Options())
    assert str(caught.value) == (
        "a question with its picture takes 138 ids of a row of 128; wanted room for an answer of "
        "10. Take a model with longer rows."
    )


def test_a_benchmark_of_training_questions_alone_is_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "coco").mkdir()
    empty = replace(PICTURED["coco"], read=lambda folder: Published([], []))
    monkeypatch.setitem(PICTURED, "coco", empty)
    with pytest.raises(EvaluationError) as caught:
        pictured_benchmark("coco", HeldOut(model, []), Options(data=tmp_path))
    assert str(caught.value) == (
        "coco: found no question to ask; wanted a test or validation split. Add its files, or "
        "leave the task out."
    )
