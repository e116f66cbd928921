from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from calumma.documents.document import Role
from calumma.errors import EvaluationError
from calumma.evaluate.captioning import GREEDY_TEXT
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.vlm_files import VlmExample, VlmSplits
from calumma.evaluate.vlm_tasks import VLM_BENCHMARKS, VlmPromptBuilder, select_fewshot, vlm_benchmark
from calumma.generate.model import Model
from calumma.tokens.sequence import encode_turns
from tests.evaluate.oracle import plain_image
from tests.evaluate.published import write_vlm_benchmarks

RED, BLUE = plain_image((255, 0, 0)), plain_image((0, 0, 255))
EXAMPLE = VlmExample(RED, "what is it?", ("square", "box", "square"))
QUESTION = VlmExample(BLUE, "is it red?", ("yes",))


def _texts(asker: VlmPromptBuilder) -> list[str]:
    return [part for part in asker.prompt(QUESTION) if isinstance(part, str)]


def test_a_prompt_shows_examples_with_their_answers_line_by_line(model: Model) -> None:
    asker = VlmPromptBuilder(model, [EXAMPLE], VLM_BENCHMARKS["vqav2"], EvalConfig())
    assert _texts(asker) == ["Question: what is it? Answer: square\n", "Question: is it red? Answer:"]
    assert _texts(VlmPromptBuilder(model, [EXAMPLE], VLM_BENCHMARKS["coco"], EvalConfig())) == ["square\n"]
    config = EvalConfig(caption_question="It is")
    assert _texts(VlmPromptBuilder(model, [EXAMPLE], VLM_BENCHMARKS["coco"], config)) == ["It is square\n", "It is"]


def test_what_is_put_is_the_prompt_that_is_shown(model: Model) -> None:
    asker = VlmPromptBuilder(model, [EXAMPLE], VLM_BENCHMARKS["vqav2"], EvalConfig())
    codes = model.encode_image(BLUE.open())
    assert asker.token_ids(QUESTION, codes) == model.encode(asker.prompt(QUESTION))
    # And so is what comes of it, up to the end of its line.
    samples = model.generate_batch(
        [asker.prompt(QUESTION)], add_generation_prompt=False, max_new_tokens=10, max_images=0, text=GREEDY_TEXT
    )
    [text] = [str(part) for part in samples[0].parts] or [""]
    assert asker.generate_answers([QUESTION]) == [text.strip().partition("\n")[0].strip()]


def test_in_turns_examples_are_earlier_turns_and_images_are_padded(model: Model) -> None:
    asker = VlmPromptBuilder(model, [EXAMPLE], VLM_BENCHMARKS["vqav2"], EvalConfig(chat_template=True))
    codes = [model.encode_image(image.open(), resize_mode="pad") for image in (RED, BLUE)]
    turns: list[tuple[Role, list[str | list[int]]]] = [
        ("user", [codes[0], "Question: what is it? Answer:"]),
        ("assistant", ["square"]),
        ("user", [codes[1], "Question: is it red? Answer:"]),
    ]
    assert asker.token_ids(QUESTION, codes[1]) == encode_turns(turns, model.text)
    plain = VlmPromptBuilder(model, [EXAMPLE], VLM_BENCHMARKS["coco"], EvalConfig(chat_template=True))
    assert _texts(plain) == ["square"]


def test_an_answer_ends_with_its_line(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = VlmPromptBuilder(model, [], VLM_BENCHMARKS["coco"], EvalConfig())
    monkeypatch.setattr(VlmPromptBuilder, "_text", lambda self, ids: "\n red \nand" if len(ids) > 1 else "\n")
    aborted: list[Any] = []
    abort = model.engine.abort
    monkeypatch.setattr(model.engine, "abort", lambda state: (aborted.append(state), abort(state)))
    assert asker.generate_answers([QUESTION]) == ["red"]
    assert len(aborted[0].output_token_ids) < VLM_BENCHMARKS["coco"].max_new_tokens


def test_examples_that_do_not_fit_the_context_are_left_out(model: Model) -> None:
    long = VlmExample(plain_image(), "why? " * 8, ("x",))
    kind, questions = VLM_BENCHMARKS["vqav2"], [VlmExample(plain_image(), "why?", ("x",))]
    fitting = select_fewshot(model, questions, [long] * 6, kind, EvalConfig(num_fewshot=6))
    assert 0 < len(fitting) < 6
    assert select_fewshot(model, questions, [long], kind, EvalConfig(num_fewshot=0)) == []
    with pytest.raises(EvaluationError) as caught:
        select_fewshot(model, [VlmExample(plain_image(), "?" * 120, ("x",))], [], kind, EvalConfig())
    assert str(caught.value) == (
        "a question with its image takes 138 tokens of a max_seq_len of 128; expected 10 more for "
        "the answer. Take a model with a longer context."
    )


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
