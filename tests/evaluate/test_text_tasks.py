import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calumma.errors import ConfigError, EvaluationError
from calumma.evaluate import text_tasks
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.metric import wilson_interval
from calumma.evaluate.text_tasks import text_benchmark
from calumma.generate.model import Model
from tests.evaluate.published import lines, write_benchmarks

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("published"))


def _measured(name: str, model: Model, published: Path, **config: Any) -> tuple[dict[str, Any], EvalContext]:
    context = EvalContext(model, [])
    metrics = text_benchmark(name, context, EvalConfig(benchmarks_folder=published, **config))
    return {metric.name: metric for metric in metrics}, context


def test_multiple_choice_has_chance_the_most_common_index_and_a_unigram_as_baselines(
    model: Model, published: Path
) -> None:
    # "use a key" has words that training knows, "use a cloud" does not: right 2 times of 3.
    counts = np.zeros(model.vocabulary.size, dtype=np.int64)
    counts[model.text.encode(" key")] = 10_000
    metrics, context = _measured("piqa", model, published, training_counts=counts, log_samples=2)
    assert set(metrics) == {"piqa_acc", "piqa_acc_norm"}
    metric = metrics["piqa_acc"]
    assert metric.n == 3
    assert metric.interval == pytest.approx(wilson_interval(metric.value * 3, 3))
    assert metric.baselines["chance"] == 0.5
    assert metric.baselines["most common index"] == pytest.approx(2 / 3)
    assert metric.baselines["unigram"] == pytest.approx(2 / 3)
    assert metric.baseline == pytest.approx(2 / 3)
    first, second = context.logged_samples
    assert first.prompt == ["Question: open box 0\nAnswer:"]
    assert [str(line).split("  ")[-1] for line in first.answer] == [
        "' use a key'\n", "' use a cloud'\n",
    ]  # fmt: skip
    assert (first.target, second.target) == ([" use a key"], [" use a cloud"])


def test_subjects_of_mmlu_are_asked_apart_with_examples_of_their_own(model: Model, published: Path) -> None:
    results: list[tuple[int, ...]] = []

    def on_progress(*what: int) -> None:
        results.append(what)

    metrics, context = _measured("mmlu", model, published, log_samples=9, on_progress=on_progress)
    assert results[-1] == (4, 4) and sorted(results) == results
    assert metrics["mmlu_acc"].n == 4
    prompts = [shown.prompt[0] for shown in context.logged_samples]
    assert [prompt.count("Answer: B") for prompt in prompts if isinstance(prompt, str)] == [5] * 4
    assert "about anatomy" in str(prompts[0]) and "about astronomy" in str(prompts[3])


def test_tasks_of_big_bench_have_metrics_of_their_own(model: Model, published: Path) -> None:
    metrics, _ = _measured("bigbench", model, published)
    assert {name: metric.n for name, metric in metrics.items()} == {
        "bigbench_acc": 2, "bigbench_heat_acc": 2,
    }  # fmt: skip
    assert metrics["bigbench_heat_acc"].baselines["chance"] == 0.5


def test_where_contexts_differ_they_are_the_candidates(model: Model, published: Path) -> None:
    _, context = _measured("winogrande", model, published, log_samples=1)
    [shown] = context.logged_samples
    assert shown.target == ["The cup beat the jug as the cup"]
    assert "the jug'" in str(shown.answer[1])


def test_mathematics_is_right_when_the_answer_is_and_votes_are_counted(
    model: Model, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(self: Any, requests: Any) -> list[str]:
        if not requests[0].args[1].get("do_sample"):
            return ["so #### 9"] * len(requests)
        return ["#### 1", "#### 3", "#### 1"] * (len(requests) // 3)

    monkeypatch.setattr(text_tasks.HarnessModel, "generate_until", written)
    metrics, _ = _measured("gsm8k", model, published, majority_votes=3)
    assert metrics["gsm8k_exact_match"].value == 0.0
    # The questions' answers are 1 and 2.
    assert (metrics["gsm8k_maj3"].value, metrics["gsm8k_maj3"].n) == (0.5, 2)
    assert metrics["gsm8k_maj3"].baselines == {"one answer": pytest.approx(2 / 6)}


def test_competition_mathematics_is_scored_by_the_harness_own_rules(
    model: Model, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Final Answer: The final answer is $2$. I hope it is correct."

    def written(self: Any, requests: Any) -> list[str]:
        return [said] * len(requests)

    monkeypatch.setattr(text_tasks.HarnessModel, "generate_until", written)
    metrics, _ = _measured("math", model, published, majority_votes=2)
    assert {name: metric.value for name, metric in metrics.items()} == {
        "math_exact_match": 1.0, "math_math_verify": 1.0, "math_maj2": 1.0,
    }  # fmt: skip


def test_a_benchmark_without_files_is_refused(model: Model, published: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        text_benchmark("piqa", EvalContext(model, []), EvalConfig())
    assert str(caught.value) == (
        "piqa: no folder of benchmarks is given; expected its files in a folder 'piqa' of --data "
        "DIR. `calumma evaluate --list` names them."
    )
    with pytest.raises(EvaluationError, match=r"^piqa: .*/mmlu/piqa does not exist; expected its files"):
        text_benchmark("piqa", EvalContext(model, []), EvalConfig(benchmarks_folder=published / "mmlu"))


def test_an_unknown_subject_is_refused(model: Model, tmp_path: Path) -> None:
    for split in ("test", "dev"):
        lines(tmp_path / f"mmlu/{split}/cooking_{split}.csv", ["Tea?,a,b,c,d,B"] * 5)
    with pytest.raises(EvaluationError) as caught:
        text_benchmark("mmlu", EvalContext(model, []), EvalConfig(benchmarks_folder=tmp_path))
    assert str(caught.value) == (
        "the harness has no task 'mmlu_cooking'; expected a benchmark's own subjects as names of "
        "files. Remove the others from the folder."
    )


def test_another_number_of_examples_may_be_asked_for(model: Model, published: Path) -> None:
    _, context = _measured("piqa", model, published, num_fewshot=1, log_samples=1)
    assert str(context.logged_samples[0].prompt[0]).count("Question: ") == 2
    with pytest.raises(EvaluationError) as caught:
        _measured("math", model, published, num_fewshot=1)
    assert str(caught.value) == (
        "math: --num-fewshot 1; expected 0, or the benchmark's own 4 examples. Leave --num-fewshot out."
    )


def test_without_the_harness_the_error_names_the_package(
    model: Model, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError) as caught:
        text_benchmark("piqa", EvalContext(model, []), EvalConfig(benchmarks_folder=published))
    assert str(caught.value) == (
        "lm-evaluation-harness is not installed; expected it for this benchmark. `pip install "
        "'calumma[evaluate]'` brings it."
    )
