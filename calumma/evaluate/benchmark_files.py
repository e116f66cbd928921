"""Readers of text benchmarks' published files, into the records that lm-evaluation-harness expects.

A benchmark is a folder that holds the official files under their own names:

    DIR/piqa/valid.jsonl  valid-labels.lst     DIR/arc_easy/ARC-Easy-Test.jsonl
    DIR/mmlu/test/anatomy_test.csv  dev/...    DIR/math/test/algebra/1.json

Files of few-shot examples (a training or development split) are optional.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calumma.errors import EvaluationError

BenchmarkRecord = dict[str, Any]
MMLU_LETTERS = "ABCD"


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, and the conversion of their records."""

    files: str
    """The file, or a pattern of files, inside the benchmark's folder."""

    labels: str = ""
    """A file with one label per line, where labels are separate."""

    convert: Callable[[BenchmarkRecord], BenchmarkRecord] = dict
    """Converts a published record to the field names of the harness' task."""

    subject: Callable[[Path], str] | None = None
    """Maps a file to the `subject` of its records; None for no subjects."""


def read_records(folder: Path, split: SplitFiles) -> list[BenchmarkRecord]:
    """Return the records of one split, in the order of file names and lines.

    Raises:
        EvaluationError: a file does not exist, has another format, or has another number of
            records than of labels.
    """
    paths = sorted(folder.glob(split.files))
    if not paths:
        raise EvaluationError(
            f"{folder}: found no {split.files}; expected the benchmark's own files under their own "
            "names. `calumma evaluate --list` names them; copy them there, or leave the task out."
        )
    records = [(path, record) for path in paths for record in _rows(path)]
    if split.labels:
        labels = _labels(folder / split.labels)
        if len(labels) != len(records):
            raise EvaluationError(
                f"{folder}: found {len(records)} questions in {split.files} and {len(labels)} "
                f"labels in {split.labels}; expected the same number. Copy both files again."
            )
        records = [(path, {**record, "label": label}) for (path, record), label in zip(records, labels, strict=True)]
    try:
        return [
            {**split.convert(record), **({"subject": split.subject(path)} if split.subject else {})}
            for path, record in records
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EvaluationError(
            f"{folder / split.files}: a record has another format ({type(error).__name__}: "
            f"{error}); expected the benchmark's own fields. Copy the official file again."
        ) from error


def _labels(path: Path) -> list[str]:
    if not path.is_file():
        raise EvaluationError(
            f"{path} does not exist; expected the file of labels that belongs to the questions. "
            "Copy it there, or leave the task out."
        )
    return path.read_text(encoding="utf-8").split()


def _rows(path: Path) -> Iterator[BenchmarkRecord]:
    """Yield the records of a file: lines of JSON, one JSON object, or a CSV without a header."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                yield {"cells": row}
        return
    content = path.read_text(encoding="utf-8")
    objects = [content] if path.suffix == ".json" else content.splitlines()
    for number, text in enumerate(objects, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise EvaluationError(
                f"{path}, line {number} is not JSON ({error}); expected the benchmark's own file. Copy it again."
            ) from error
        if "examples" in record:
            form = {key: value for key, value in record.items() if key != "examples"}
            yield from ({**example, "form": form} for example in record["examples"])
        else:
            yield record


def subject_from_name(path: Path) -> str:
    """Return the subject in a file's name, without its split.

    >>> subject_from_name(Path("test/high_school_biology_test.csv"))
    'high_school_biology'
    """
    return path.stem.rpartition("_")[0]


def subject_from_folder(path: Path) -> str:
    """Return the subject in the name of a file's folder."""
    return path.parent.name


def piqa(record: BenchmarkRecord) -> BenchmarkRecord:
    """Convert the label to a number from 0."""
    return {**record, "label": int(record["label"])}


def arc(record: BenchmarkRecord) -> BenchmarkRecord:
    """Separate the question's stem and choices."""
    question = record["question"]
    return {"question": question["stem"], "choices": _choices(question["choices"]), "answerKey": record["answerKey"]}


def open_book(record: BenchmarkRecord) -> BenchmarkRecord:
    """Convert as `arc`, with the stem under OpenBookQA's name."""
    converted = arc(record)
    return {"question_stem": converted.pop("question"), **converted}


def _choices(published: list[BenchmarkRecord]) -> dict[str, list[str]]:
    return {key: [choice[key] for choice in published] for key in ("text", "label")}


def boolq(record: BenchmarkRecord) -> BenchmarkRecord:
    """Convert the answer to 0 or 1."""
    keys = ("passage", "question")
    return {**{key: record[key] for key in keys}, "label": int(bool(record["answer"]))}


def hellaswag(record: BenchmarkRecord) -> BenchmarkRecord:
    """Keep the fields that the task reads: the published files differ in the others."""
    keys = ("ctx_a", "ctx_b", "activity_label", "endings", "label")
    return {key: record[key] for key in keys}


def mmlu(record: BenchmarkRecord) -> BenchmarkRecord:
    """Convert a CSV row: the question, four choices, and the letter of the correct one."""
    question, *choices, letter = record["cells"]
    if len(choices) != len(MMLU_LETTERS):
        raise ValueError(f"{len(choices)} choices")
    return {"question": question, "choices": choices, "answer": MMLU_LETTERS.index(letter.strip())}


def big_bench(record: BenchmarkRecord) -> BenchmarkRecord:
    """Convert an example with scored choices.

    The prompt follows BIG-bench's own format: prefixes and the listed choices, with the defaults of
    that format where a task does not set them.
    """
    scores: dict[str, float] = record["target_scores"]
    form, best = record["form"], max(scores.values())
    choices = ""
    if form.get("append_choices_to_input", True):
        choices = "".join(form.get("choice_prefix", "\n  choice: ") + choice for choice in scores)
    prefix = form.get("task_prefix", "") + form.get("example_input_prefix", "\nQ: ")
    prompt = prefix + record["input"] + choices + form.get("example_output_prefix", "\nA: ")
    return {
        "inputs": prompt.strip(),
        "multiple_choice_targets": list(scores),
        "multiple_choice_scores": [int(score == best) for score in scores.values()],
    }
