from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.vlm_files import Published, Question
from calumma.evaluate.vlm_prompts import Asker
from calumma.evaluate.vlm_tasks import PICTURED, pictured_benchmark
from calumma.generate.model import Model
from tests.evaluate.published import write_pictured


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictured(tmp_path_factory.mktemp("pictured"))


@pytest.mark.parametrize("name", PICTURED)
def test_every_benchmark_gives_a_figure_with_its_prompts(
    name: str, model: Model, published: Path
) -> None:
    held_out = EvalContext(model, [])
    figures = pictured_benchmark(
        name, held_out, EvalConfig(benchmarks_folder=published, log_samples=1)
    )
    assert figures[0].name.startswith(name)
    assert (figures[0].n, figures[0].interval is not None) == (2, True)
    assert len(figures[0].baselines) >= 1
    [shown] = held_out.logged_samples
    pictures = [part for part in shown.prompt if isinstance(part, PIL.Image.Image)]
    assert len(pictures) == (1 if name == "flickr30k" else 3)


def test_a_perfect_writer_gets_everything_right(
    model: Model, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def knows(asker: Asker, asked: list[Question]) -> list[str]:
        assert (asker.kind.tokens, len(asker.examples)) == (10, 2)
        return [question.said_most.upper() + "." for question in asked]

    monkeypatch.setattr(Asker, "write", knows)
    [figure, _] = pictured_benchmark(
        "vqav2", EvalContext(model, []), EvalConfig(benchmarks_folder=published)
    )
    assert figure.value == 1.0
    assert figure.baselines == {"commonest answer": 0.5, "nearest question": 0.5}


def test_a_benchmark_of_training_questions_alone_is_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "coco").mkdir()
    empty = replace(PICTURED["coco"], read=lambda folder: Published([], []))
    monkeypatch.setitem(PICTURED, "coco", empty)
    with pytest.raises(EvaluationError) as caught:
        pictured_benchmark("coco", EvalContext(model, []), EvalConfig(benchmarks_folder=tmp_path))
    assert str(caught.value) == (
        "coco: found no question to ask; expected a test or validation split. Add its files, or "
        "leave the task out."
    )
