"""A study: prompts, the answers of several systems, and what annotators are asked of them.

DIR/study.json            the systems, kinds of items, annotators an item, seed
DIR/prompts.jsonl         the prompts as documents (pictures in prompts-images/)
DIR/answers/NAME.jsonl    one system's answers, a document a prompt, under the prompt's id
DIR/judgments.sqlite     what annotators said (see `store`)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from calumma.compare.questions import QUESTION_SETS, QuestionSet
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_jsonl
from calumma.errors import DocumentError, EvaluationError
from calumma.files import fingerprint, make_folder, read_json, write_json

STUDY_NAME = "study.json"
PROMPTS_NAME = "prompts.jsonl"
ANSWERS_FOLDER = "answers"


@dataclass(frozen=True)
class StudyItem:
    """Something to judge: the answers of one or two systems to a prompt."""

    question_set: QuestionSet
    prompt: str

    systems: tuple[str, ...]
    """One, or the two of a pair in the study's order."""

    @property
    def key(self) -> str:
        """A short name that tells nothing of the systems; the same in every launch.

        >>> Item("pairwise", "7", ("ours", "other")).key
        'bcccd3a20ba4'
        """
        return fingerprint("\0".join((self.question_set, self.prompt, *self.systems)))


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study on disk."""

    folder: Path
    systems: tuple[str, ...]

    question_sets: tuple[QuestionSet, ...] = ("absolute", "pairwise")
    """What is asked; see `questions`."""

    annotators: int = 3
    """Different people who judge each item."""

    all_pairs: bool = False
    """Whether every two systems are compared, or only the first with each other one."""

    seed: int = 0
    """Of the order of items, and of which answer of a pair is shown first."""

    prompts: Mapping[str, Document] = field(repr=False)
    """By id."""

    @cached_property
    def answers(self) -> dict[str, dict[str, Document]]:
        """By system and prompt."""
        return {name: read_answers(self.folder, name, self.prompts) for name in self.systems}

    def items(self) -> Iterator[StudyItem]:
        """Everything there is to judge, kind by kind."""
        for kind in self.question_sets:
            for prompt in self.prompts:
                for systems in self._groups(kind):
                    yield StudyItem(kind, prompt, systems)

    def _groups(self, kind: QuestionSet) -> Iterator[tuple[str, ...]]:
        if kind != "pairwise":
            yield from ((name,) for name in self.systems)
            return
        pairs = itertools.combinations(self.systems, 2)
        yield from (pair for pair in pairs if self.all_pairs or pair[0] == self.systems[0])


def new_study(study: Study, answers: Mapping[str, Sequence[Document]]) -> None:
    """Write a study's folder.

    Args:
        study: what it is to be.
        answers: of each system, documents whose ids are the prompts'.

    Raises:
        EvaluationError: there are too few systems for a pair, or the folder holds judgments.
        DocumentError: a system has not answered a prompt.
        OutputError: the folder cannot be written.
    """
    if "pairwise" in study.question_sets and len(study.systems) < 2:
        raise EvaluationError(
            f"one system, {study.systems[0]}, and pairs to be judged; expected two or more. Name "
            "another with --system, or ask --kinds absolute."
        )
    if (study.folder / STUDY_NAME).exists():
        raise EvaluationError(
            f"{study.folder} holds a study; expected an empty folder, so that its judgments stay "
            "true. Choose another folder, or go on with this one: `calumma compare serve`."
        )
    make_folder(study.folder / ANSWERS_FOLDER)
    write_jsonl(study.folder / PROMPTS_NAME, study.prompts.values(), images="files")
    for name in study.systems:
        given = {answer.id: answer for answer in answers[name]}
        whole = [_answer(name, prompt, given) for prompt in study.prompts]
        write_jsonl(_answers_file(study.folder, name), whole, images="files")
    told = asdict(study)
    del told["folder"], told["prompts"]
    write_json(study.folder / STUDY_NAME, told)


def open_study(folder: Path) -> Study:
    """Read a study's folder.

    Raises:
        EvaluationError: there is no study.
        FileError: study.json is broken.
        DocumentError: prompts or answers cannot be read.
    """
    path = folder / STUDY_NAME
    if not path.is_file():
        raise EvaluationError(
            f"{folder} holds no {STUDY_NAME}; expected the folder of a study. Make one with "
            "`calumma compare new`."
        )
    told: dict[str, Any] = read_json(path)
    prompts = {prompt.id: prompt for prompt in read_documents([folder / PROMPTS_NAME])}
    told |= {name: tuple(told[name]) for name in ("systems", "kinds")}
    return Study(folder=folder, prompts=prompts, **told)


def parse_question_sets(names: Sequence[str]) -> tuple[QuestionSet, ...]:
    """The kinds of those names; raises `EvaluationError` for a name that is none."""
    known = {kind: kind for kind in QUESTION_SETS}
    for name in names:
        if name not in known:
            raise EvaluationError(
                f"--kinds {name}; expected some of {', '.join(QUESTION_SETS)}, with commas between."
            )
    return tuple(known[name] for name in names if name in known)


def _answers_file(folder: Path, name: str) -> Path:
    return folder / ANSWERS_FOLDER / f"{name}.jsonl"


def read_answers(folder: Path, name: str, prompts: Mapping[str, Document]) -> dict[str, Document]:
    """One system's answers in a study's folder, by prompt."""
    given = {answer.id: answer for answer in read_documents([_answers_file(folder, name)])}
    return {prompt: _answer(name, prompt, given) for prompt in prompts}


def _answer(name: str, prompt: str, given: Mapping[str, Document]) -> Document:
    if prompt not in given:
        raise DocumentError(
            f"{name} has no answer to the prompt {prompt!r} ({len(given)} answers in all); expected "
            "one document a prompt, with the prompt's id. Add it, or leave the prompt out."
        )
    return given[prompt]
