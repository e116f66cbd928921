from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.vlm_files import VlmExample, VlmSplits
from calumma.evaluate.vlm_prompts import VlmPromptBuilder
from calumma.evaluate.vlm_tasks import VLM_BENCHMARKS, vlm_benchmark
from calumma.generate.model import Model
from tests.evaluate.published import write_vlm_benchmarks


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vlm_benchmarks(tmp_path_factory.mktemp("vlm"))


@pytest.mark.parametrize("name", VLM_BENCHMARKS)
def test_every_benchmark_gives_a_metric_with_its_prompts(name: str, model: Model, published: Path) -> None:
    context = EvalContext(model, [])
    metrics = vlm_benchmark(name, context, EvalConfig(benchmarks_folder=published, log_samples=1))
    assert metrics[0].name.startswith(name)
    assert (metrics[0].n, metrics[0].interval is not None) == (2, True)
    assert len(metrics[0].baselines) >= 1
    [shown] = context.logged_samples
    images = [part for part in shown.prompt if isinstance(part, PIL.Image.Image)]
    assert len(images) == (1 if name == "flickr30k" else 3)


def test_a_perfect_writer_gets_everything_right(
    model: Model, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def knows(asker: VlmPromptBuilder, questions: list[VlmExample]) -> list[str]:
        assert (asker.benchmark.max_new_tokens, len(asker.examples)) == (10, 2)
        return [question.most_common_reference.upper() + "." for question in questions]

    monkeypatch.setattr(VlmPromptBuilder, "generate_answers", knows)
    [metric, _] = vlm_benchmark("vqav2", EvalContext(model, []), EvalConfig(benchmarks_folder=published))
    assert metric.value == 1.0
    assert metric.baselines == {"most common answer": 0.5, "nearest question": 0.5}


def test_a_benchmark_of_training_questions_alone_is_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "coco").mkdir()
    empty = replace(VLM_BENCHMARKS["coco"], read=lambda folder: VlmSplits([], []))
    monkeypatch.setitem(VLM_BENCHMARKS, "coco", empty)
    with pytest.raises(EvaluationError) as caught:
        vlm_benchmark("coco", EvalContext(model, []), EvalConfig(benchmarks_folder=tmp_path))
    assert str(caught.value) == (
        "coco: found no question; expected a test or validation split. Add its files, or leave the task out."
    )
