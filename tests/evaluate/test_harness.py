import math
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import EvaluationError
from calumma.evaluate.benchmarks import TEXT_BENCHMARKS
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.harness import HarnessModel, register_harness_model
from calumma.evaluate.text_tasks import load_records, run_harness
from calumma.generate.model import Model
from tests.evaluate.published import lines, write_benchmarks

lm_eval = pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")

CHOICES = ("piqa", "hellaswag", "winogrande", "mmlu", "bigbench")


def _request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


@pytest.fixture(scope="module")
def theirs(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the harness' own class for transformers, on the folder that we write."""
    folder = tmp_path_factory.mktemp("harness") / "model"
    save_model(folder, model_parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.models.huggingface import HFLM

        loaded = transformers.ChameleonForConditionalGeneration.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=2, device="cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("name", CHOICES)
def test_the_harness_gives_for_our_class_what_it_gives_for_its_own(
    name: str, model: Model, theirs: Any, published: Path
) -> None:
    benchmark = TEXT_BENCHMARKS[name]
    questions, examples = load_records(name, EvalConfig(benchmarks_folder=published))
    ours = run_harness(HarnessModel(model), benchmark, questions, examples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = run_harness(theirs, benchmark, questions, examples)
    assert len(ours) == len(own) == len(questions)
    for one, other in zip(ours, own, strict=True):
        assert one["arguments"] == other["arguments"]
        for (score, greedy), (their_score, their_greedy) in zip(
            one["filtered_resps"], other["filtered_resps"], strict=True
        ):
            assert score == pytest.approx(their_score, abs=1e-4)
            assert greedy == their_greedy
        assert one["acc"] == other["acc"]


def test_what_is_written_is_what_transformers_writes(model: Model, theirs: Any, published: Path) -> None:
    benchmark = TEXT_BENCHMARKS["gsm8k"]
    questions, examples = load_records("gsm8k", EvalConfig(benchmarks_folder=published))
    short = replace(benchmark, overrides={"generation_kwargs": {"until": ["Q:"], "max_gen_toks": 9}})
    ours = run_harness(HarnessModel(model), short, questions, examples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = run_harness(theirs, short, questions, examples)
    for one, other in zip(ours, own, strict=True):
        assert one["arguments"] == other["arguments"]
        assert one["resps"] == other["resps"]


def test_a_long_text_is_scored_in_windows_as_the_harness_does(model: Model, theirs: Any) -> None:
    # The tiny model reads 128 ids; a row, a row and a bit, and two rows and a bit.
    for text in ("a red circle", "a red circle on blue " * 9, "words and more words " * 30, ""):
        [ours] = HarnessModel(model).loglikelihood_rolling([_request(text)])
        [own] = theirs.loglikelihood_rolling([_request(text)], disable_tqdm=True)
        assert ours == pytest.approx(own, abs=1e-3, rel=1e-5)


def test_a_pair_is_encoded_as_one_text_and_an_empty_context_is_begin_of_sequence(model: Model) -> None:
    harness_model = HarnessModel(model)
    bos = model.vocabulary.bos
    before, after = harness_model.encode_pair("a red ", "circle")
    assert before == [bos, *model.text.encode("a red")]
    assert before + after == [bos, *model.text.encode("a red circle")]
    assert harness_model.encode_pair("", "circle") == ([bos], model.text.encode("circle"))


def test_image_codes_cannot_come_in_a_task_of_text(model: Model) -> None:
    [(score, greedy)] = HarnessModel(model).loglikelihood([_request("a red", " circle")])
    ids = [model.vocabulary.bos, *model.text.encode("a red circle")]
    count = len(ids) - 1 - len(model.text.encode("a red"))
    logits = model.logits(ids)[0].clone()
    logits[:, model.vocabulary.codes.start : model.vocabulary.codes.stop] = -torch.inf
    logs = logits.log_softmax(-1)
    positions = range(len(ids) - 1 - count, len(ids) - 1)
    assert score == pytest.approx(sum(float(logs[n, ids[n + 1]]) for n in positions), abs=1e-4)
    assert greedy == all(int(logs[n].argmax()) == ids[n + 1] for n in positions)


def test_a_text_is_cut_at_the_first_stop_and_seeds_differ_from_question_to_question(model: Model) -> None:
    results: list[tuple[int, int]] = []
    harness_model = HarnessModel(model, seed=4, on_progress=lambda *what: results.append(what))
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    first, second = harness_model.generate_until([_request("a red", drawn)] * 2)
    assert first != second
    assert harness_model.generate_until([_request("a red", drawn)])[0] == first
    stop = first[4:6]
    [cut] = harness_model.generate_until([_request("a red", {**drawn, "until": [stop]})])
    assert cut == first[: first.index(stop)]
    assert results[:2] == [(1, 2), (2, 2)]


def test_the_harness_own_program_takes_it_for_one_of_its_models(model: Model, tmp_path: Path) -> None:
    lines(tmp_path / "q.jsonl", [{"q": f"{n} and 1", "a": f" is {n + 1}"} for n in range(3)])
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "q.jsonl")},
                           "cache_dir": str(tmp_path)},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}],
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = lm_eval.simple_evaluate(
            model=register_harness_model(HarnessModel(model)), tasks=[task], bootstrap_iters=0
        )
    requests = [_request(f"{n} and 1", f" is {n + 1}") for n in range(3)]
    scores = [score for score, _ in HarnessModel(model).loglikelihood(requests)]
    assert results["results"]["sums"]["perplexity,none"] == pytest.approx(math.exp(-sum(scores) / 3))


def test_a_continuation_without_a_token_of_its_own_is_scored_with_the_token_it_merges_into(model: Model) -> None:
    harness_model, encode = HarnessModel(model), model.text.encode
    bos = model.vocabulary.bos
    context, continuation = next(
        (text[:cut], text[cut:])
        for text in ("a red circle", "words and words", "picture")
        for cut in range(1, len(text))
        if len(encode(text)) <= len(encode(text[:cut])) and not text[:cut].endswith(" ")
    )
    before, after = harness_model.encode_pair(context, continuation)
    assert before + after == [bos, *encode(context + continuation)]
    assert before
    assert after
    [(logprob, _)] = harness_model.loglikelihood([_request(context, continuation)])
    assert logprob < 0


def test_an_empty_continuation_is_refused(model: Model) -> None:
    for context in ("", "a red"):
        with pytest.raises(EvaluationError) as caught:
            HarnessModel(model).loglikelihood([_request(context, "")])
        assert str(caught.value) == (
            f"a continuation of {context!r} is empty (''); expected text to score. Fix the answer choices of the task."
        )
