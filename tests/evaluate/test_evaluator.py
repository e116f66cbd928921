from dataclasses import replace

import pytest

from calumma.documents.document import Document, Text, Turn
from calumma.errors import EvaluationError, GenerationError, Interrupted
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.evaluator import TASKS, check_tasks, evaluate, list_tasks
from calumma.evaluate.metric import Metric
from calumma.evaluate.report import EvalReport
from calumma.generate.model import Model
from tests.evaluate.test_refusal_rates import safety_prompt

CONTRACT = {
    "text_bits_per_token", "code_bits_per_token", "retrieval_text_given_image",
    "retrieval_image_given_text", "code_bits_right_minus_shuffled", "colour_asked_colour_drawn",
    "reconstruction_psnr_db", "codebook_used",
}  # fmt: skip


OF_DOCUMENTS = [name for name, task in TASKS.items() if not task.files]


def test_all_tasks_give_the_contracts_metrics_and_the_same_ones_again(model: Model, scenes: list[Document]) -> None:
    results: dict[str, tuple[int, ...]] = {}
    turns = (Turn("user", (Text("draw"),)), Turn("assistant", (Text("no"),)))
    documents = [*scenes, safety_prompt("how", "drugs"), Document(id="turns", messages=turns)]
    config = EvalConfig(seed=3, max_prompts=4, training_documents=scenes[:3])
    report = evaluate(
        model, documents, OF_DOCUMENTS, config, progress=lambda *what: results.update({what[0]: what[1:]})
    )
    assert {metric.name for metric in report.metrics} >= CONTRACT
    assert report.metric("code_bits_per_token").n == len(scenes)
    assert report.metric("colour_asked_colour_drawn").n == 4
    assert set(results) == {"encoding", *OF_DOCUMENTS} - {"text_to_image"}  # it wants features
    assert all(done == of for done, of in results.values())
    assert evaluate(model, documents, OF_DOCUMENTS, config).metrics == report.metrics


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(EvaluationError) as caught:
        check_tasks(["likelihood", "perplexity"])
    assert str(caught.value) == (
        "task 'perplexity' is not known; expected names of tasks. `calumma evaluate --list` lists them."
    )
    with pytest.raises(EvaluationError) as caught:
        check_tasks(["likelihod"])
    assert str(caught.value) == (
        "task 'likelihod' is not known; expected perhaps likelihood. `calumma evaluate --list` lists them."
    )
    with pytest.raises(EvaluationError, match=r"^no task is named; expected names of tasks\."):
        check_tasks([])


def test_the_list_has_every_task_and_its_files() -> None:
    results = list_tasks()
    for name, task in TASKS.items():
        assert f"  {name} " in results
        assert task.summary in results
        assert not task.files or f"DIR/{name}/: {task.files}" in results
    assert "DIR/piqa/: valid.jsonl, valid-labels.lst" in results
    assert "DIR/mmlu/: test/*_test.csv, dev/*_dev.csv" in results


def test_a_task_without_suitable_documents_is_skipped_with_the_reason(model: Model, scenes: list[Document]) -> None:
    report = evaluate(model, scenes, ["likelihood", "safety"], EvalConfig(seed=3))
    assert {metric.task for metric in report.metrics} == {"likelihood"}
    with pytest.raises(EvaluationError) as caught:
        evaluate(model, scenes, ["safety"], EvalConfig(seed=3))
    assert str(caught.value).startswith("safety: ")
    assert str(caught.value) in report.skipped


def test_all_tasks_are_checked_before_the_first_one_runs(
    model: Model, scenes: list[Document], caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    report = evaluate(
        model,
        scenes,
        ["likelihood", "safety", "piqa"],
        EvalConfig(seed=3),
        progress=lambda name, done, total: events.append(f"{name}: {len(caplog.messages)}"),
    )
    first = next(event for event in events if event.startswith("likelihood"))
    assert first == "likelihood: 2"
    assert caplog.messages[1] == (
        "not measured: piqa: no folder of benchmarks is given; expected its files in a folder 'piqa' of "
        "--data DIR. `calumma evaluate --list` names them."
    )
    assert [line.partition(":")[0] for line in report.skipped[:2]] == ["safety", "piqa"]


def test_a_task_that_fails_leaves_the_finished_ones(
    model: Model, scenes: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(context: EvalContext, config: EvalConfig) -> list[Metric]:
        raise GenerationError("no memory")

    monkeypatch.setitem(TASKS, "retrieval", replace(TASKS["retrieval"], measure=fail))
    saved: list[EvalReport] = []
    report = evaluate(model, scenes, ["likelihood", "retrieval", "reconstruction"], on_task=saved.append)
    assert [len({metric.task for metric in each.metrics}) for each in saved] == [1, 2]
    assert "retrieval: no memory" in report.skipped

    def stop(context: EvalContext, config: EvalConfig) -> list[Metric]:
        raise Interrupted("stopped")

    monkeypatch.setitem(TASKS, "retrieval", replace(TASKS["retrieval"], measure=stop))
    with pytest.raises(Interrupted):
        evaluate(model, scenes, ["likelihood", "retrieval"], on_task=saved.append)
    assert {metric.task for metric in saved[-1].metrics} == {"likelihood"}
