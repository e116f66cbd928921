from pathlib import Path

import pytest

from calumma.errors import EvaluationError
from calumma.evaluate import benchmark_files as files
from calumma.evaluate.benchmark_files import SplitFiles, read_records
from tests.evaluate.published import lines, write_benchmarks


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("published"))


def test_labels_of_a_separate_file_are_added_to_the_records(published: Path) -> None:
    source = SplitFiles("valid.jsonl", "valid-labels.lst", files.piqa)
    read = read_records(published / "piqa", source)
    assert [(each["goal"], each["label"]) for each in read] == [
        ("open box 0", 0), ("open box 1", 1), ("open box 2", 0),
    ]  # fmt: skip


def test_arc_and_open_book_have_their_choices_side_by_side(published: Path) -> None:
    [first, _] = read_records(published / "arc_easy", SplitFiles("ARC-Easy-Test.jsonl", convert=files.arc))
    assert first == {
        "question": "What is hot?",
        "choices": {"text": ["ice", "sun", "tea"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }
    open_book = read_records(published / "openbookqa", SplitFiles("test.jsonl", convert=files.open_book))
    assert open_book[0] == {"question_stem": first.pop("question"), **first}


def test_rows_of_mmlu_keep_their_commas_and_know_their_subject(published: Path) -> None:
    source = SplitFiles("test/*_test.csv", convert=files.mmlu, subject=files.subject_from_name)
    read = read_records(published / "mmlu", source)
    assert read[0] == {
        "question": "What, is it?", "choices": ["ice", "sun", "tea", "a, b"], "answer": 1,
        "subject": "anatomy",
    }  # fmt: skip
    assert {each["subject"] for each in read} == {"anatomy", "astronomy"}


def test_a_prompt_of_big_bench_lists_its_choices_unless_the_task_says_otherwise() -> None:
    example = {"input": "hot?", "target_scores": {"ice": 0, "sun": 1}}
    read = files.big_bench({**example, "form": {}})
    assert read["inputs"] == "Q: hot?\n  choice: ice\n  choice: sun\nA:"
    assert read["multiple_choice_targets"] == ["ice", "sun"]
    assert read["multiple_choice_scores"] == [0, 1]
    form = {"append_choices_to_input": False, "task_prefix": "Say.", "example_output_prefix": "\n>"}
    assert files.big_bench({**example, "form": form})["inputs"] == "Say.\nQ: hot?\n>"


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        read_records(tmp_path, SplitFiles("valid.jsonl"))
    assert str(caught.value) == (
        f"{tmp_path}: found no valid.jsonl; expected the benchmark's own files under their own "
        "names. `calumma evaluate --list` names them; copy them there, or leave the task out."
    )
    lines(tmp_path / "valid.jsonl", [{}, {}])
    with pytest.raises(EvaluationError) as caught:
        read_records(tmp_path, SplitFiles("valid.jsonl", "labels.lst"))
    assert str(caught.value) == (
        f"{tmp_path / 'labels.lst'} does not exist; expected the file of labels that belongs to "
        "the questions. Copy it there, or leave the task out."
    )
    lines(tmp_path / "labels.lst", ["1"])
    with pytest.raises(EvaluationError) as caught:
        read_records(tmp_path, SplitFiles("valid.jsonl", "labels.lst"))
    assert str(caught.value) == (
        f"{tmp_path}: found 2 questions in valid.jsonl and 1 labels in labels.lst; expected the "
        "same number. Copy both files again."
    )


def test_records_that_are_not_as_published_are_refused(tmp_path: Path) -> None:
    lines(tmp_path / "dev.jsonl", ["{}", "{"])
    with pytest.raises(EvaluationError) as caught:
        read_records(tmp_path, SplitFiles("dev.jsonl"))
    assert str(caught.value).startswith(f"{tmp_path / 'dev.jsonl'}, line 2 is not JSON (")
    lines(tmp_path / "dev.jsonl", [{"passage": "p"}])
    with pytest.raises(EvaluationError) as caught:
        read_records(tmp_path, SplitFiles("dev.jsonl", convert=files.boolq))
    assert str(caught.value) == (
        f"{tmp_path / 'dev.jsonl'}: a record has another format (KeyError: 'question'); expected "
        "the benchmark's own fields. Copy the official file again."
    )
