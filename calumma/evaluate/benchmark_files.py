"""Benchmarks as their authors publish them, read into the records that harness tasks expect.

A benchmark is a folder that holds the official files under their own names:

    DIR/piqa/valid.jsonl  valid-labels.lst     DIR/arc_easy/ARC-Easy-Test.jsonl
    DIR/mmlu/test/anatomy_test.csv  dev/...    DIR/math/test/algebra/1.json

Files of few-shot examples (a training or development split) are optional.
"""

from __future__ import annotations

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
    """Where the records of one split lie, and how a record is read."""

    files: str
    """The file, or a pattern of files, inside the benchmark's folder."""

    labels: str = ""
    """A file with one label a line, where labels stand apart."""

    convert: Callable[[BenchmarkRecord], BenchmarkRecord] = dict
    """From a record as published to one as the harness' task names its fields."""

    subject: Callable[[Path], str] | None = None
    """What a file is about, where questions are told apart by it: their `subject` then."""


def read_records(folder: Path, source: SplitFiles) -> list[BenchmarkRecord]:
    """The records of one split, in the order of the files' names and lines.

    Raises:
        EvaluationError: a file is not there, holds no such records, or labels and questions
            differ in number.
    """
    paths = sorted(folder.glob(source.files))
    if not paths:
        raise EvaluationError(
            f"{folder}: found no {source.files}; expected the benchmark's own files under their own "
            "names. `calumma evaluate --list` names them; put them there, or leave the task out."
        )
    found = [(path, record) for path in paths for record in _rows(path)]
    if source.labels:
        labels = _labels(folder / source.labels)
        if len(labels) != len(found):
            raise EvaluationError(
                f"{folder}: found {len(found)} questions in {source.files} and {len(labels)} "
                f"labels in {source.labels}; expected as many of both. Copy both files again."
            )
        found = [
            (path, {**one, "label": label})
            for (path, one), label in zip(found, labels, strict=True)
        ]
    try:
        return [
            {
                **source.convert(record),
                **({"subject": source.subject(path)} if source.subject else {}),
            }
            for path, record in found
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EvaluationError(
            f"{folder / source.files}: a record is not as published ({type(error).__name__}: "
            f"{error}); expected the benchmark's own fields. Copy the official file again."
        ) from error


def _labels(path: Path) -> list[str]:
    if not path.is_file():
        raise EvaluationError(
            f"{path}: is not there; expected the file of labels that belongs to the questions. "
            "Put it there, or leave the task out."
        )
    return path.read_text(encoding="utf-8").split()


def _rows(path: Path) -> Iterator[BenchmarkRecord]:
    """The records of a file: lines of JSON, one JSON object, or a CSV without a head."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                yield {"cells": row}
        return
    text = path.read_text(encoding="utf-8")
    pieces = [text] if path.suffix == ".json" else text.splitlines()
    for number, piece in enumerate(pieces, start=1):
        if not piece.strip():
            continue
        try:
            record = json.loads(piece)
        except ValueError as error:
            raise EvaluationError(
                f"{path}: line {number} is no JSON ({error}); expected the benchmark's own file. "
                "Copy it again."
            ) from error
        if "examples" in record:
            form = {key: value for key, value in record.items() if key != "examples"}
            yield from ({**example, "form": form} for example in record["examples"])
        else:
            yield record


def subject_from_name(path: Path) -> str:
    """The subject that a file is named after, before its split.

    >>> by_name(Path("test/high_school_biology_test.csv"))
    'high_school_biology'
    """
    return path.stem.rpartition("_")[0]


def subject_from_folder(path: Path) -> str:
    """The subject that a file's folder is named after."""
    return path.parent.name


def piqa(record: BenchmarkRecord) -> BenchmarkRecord:
    """Labels are numbers from 0."""
    return {**record, "label": int(record["label"])}


def arc(record: BenchmarkRecord) -> BenchmarkRecord:
    """The question's stem and choices, apart."""
    question = record["question"]
    return {
        "question": question["stem"],
        "choices": _choices(question["choices"]),
        "answerKey": record["answerKey"],
    }


def open_book(record: BenchmarkRecord) -> BenchmarkRecord:
    """The same, with the stem under its own name."""
    read = arc(record)
    return {"question_stem": read.pop("question"), **read}


def _choices(published: list[BenchmarkRecord]) -> dict[str, list[str]]:
    return {key: [choice[key] for choice in published] for key in ("text", "label")}


def boolq(record: BenchmarkRecord) -> BenchmarkRecord:
    """The answer as 0 or 1."""
    keys = ("passage", "question")
    return {**{key: record[key] for key in keys}, "label": int(bool(record["answer"]))}


def hellaswag(record: BenchmarkRecord) -> BenchmarkRecord:
    """Only what the task reads: the published files differ in the rest."""
    keys = ("ctx_a", "ctx_b", "activity_label", "endings", "label")
    return {key: record[key] for key in keys}


def mmlu(record: BenchmarkRecord) -> BenchmarkRecord:
    """A row of a CSV: the question, four choices, and the letter of the right one."""
    question, *choices, letter = record["cells"]
    if len(choices) != len(MMLU_LETTERS):
        raise ValueError(f"{len(choices)} choices")
    return {"question": question, "choices": choices, "answer": MMLU_LETTERS.index(letter.strip())}


def big_bench(record: BenchmarkRecord) -> BenchmarkRecord:
    """An example with scored choices, as the harness names its fields.

    Prompts are put together as BIG-bench's own format says: prefixes and the choices listed, with
    the defaults of that format where a task does not set them.
    """
    scores: dict[str, float] = record["target_scores"]
    form, best = record["form"], max(scores.values())
    listed = ""
    if form.get("append_choices_to_input", True):
        listed = "".join(form.get("choice_prefix", "\n  choice: ") + choice for choice in scores)
    before = form.get("task_prefix", "") + form.get("example_input_prefix", "\nQ: ")
    asked = before + record["input"] + listed + form.get("example_output_prefix", "\nA: ")
    return {
        "inputs": asked.strip(),
        "multiple_choice_targets": list(scores),
        "multiple_choice_scores": [int(score == best) for score in scores.values()],
    }
