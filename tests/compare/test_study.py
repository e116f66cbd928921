"""A study's folder, its items, and invalid studies."""

from dataclasses import replace
from pathlib import Path

import pytest

from calumma.compare.study import (
    QUESTION_SETS,
    QUESTIONS,
    TIE,
    Study,
    new_study,
    open_study,
    parse_question_sets,
    read_answers,
)
from calumma.documents.document import Text
from calumma.errors import DocumentError, EvaluationError
from tests.compare.conftest import PROMPTS, answer


def test_a_study_comes_back_as_it_was_made(study: Study) -> None:
    assert (study.systems, study.question_sets) == (("ours", "other"), ("absolute", "pairwise"))
    assert [prompt.text for prompt in study.prompts.values()] == ["write p1", "about p2", "write p3"]
    answers_p2 = study.answers["other"]["p2"]
    assert answers_p2.content[0] == Text("other on p2")
    assert answers_p2.images[0].open().size == (16, 16)
    assert list(read_answers(study.folder, "ours", study.prompts)) == ["p1", "p2", "p3"]


def test_every_answer_is_judged_alone_and_every_pair_once(study: Study) -> None:
    items = list(study.items())
    assert [item.systems for item in items if item.question_set == "absolute"] == [*(("ours",), ("other",)) * 3]
    assert [item.prompt for item in items if item.question_set == "pairwise"] == ["p1", "p2", "p3"]
    assert len({item.key for item in items}) == len(items)


def test_pairs_are_with_the_first_system_or_all(study: Study) -> None:
    three = replace(study, systems=("a", "b", "c"), question_sets=("pairwise",))
    pairs = {item.systems for item in three.items()}
    assert pairs == {("a", "b"), ("a", "c")}
    assert {item.systems for item in replace(three, all_pairs=True).items()} == {*pairs, ("b", "c")}


def test_invalid_studies_are_refused(study: Study, tmp_path: Path) -> None:
    alone = Study(folder=tmp_path / "alone", systems=("ours",), prompts=PROMPTS)
    with pytest.raises(EvaluationError) as caught:
        new_study(alone, {})
    assert str(caught.value) == (
        "one system, ours, and pairwise questions; expected two or more. Name another with "
        "--system, or use --question-sets absolute."
    )
    with pytest.raises(EvaluationError) as caught:
        new_study(study, {})
    assert str(caught.value) == (
        f"{study.folder} holds a study; expected an empty folder, so that its judgments stay "
        "valid. Choose another folder, or resume this one: `calumma compare serve`."
    )
    lacking = replace(alone, systems=("ours", "other"))
    with pytest.raises(DocumentError) as error:
        new_study(lacking, {"ours": [answer("p1", "x")], "other": []})
    assert str(error.value) == (
        "ours has no answer to the prompt 'p2' (1 answers in total); expected one document per "
        "prompt, with the prompt's id. Add it, or remove the prompt."
    )
    with pytest.raises(EvaluationError) as caught:
        open_study(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no study.json; expected the folder of a study. Make one with `calumma compare new`."
    )


def test_question_sets_are_known(tmp_path: Path) -> None:
    assert parse_question_sets(["safety", "pairwise"]) == ("safety", "pairwise")
    with pytest.raises(EvaluationError) as caught:
        parse_question_sets(["beauty"])
    assert str(caught.value) == (
        "--question-sets beauty; expected some of absolute, pairwise, safety, with commas between."
    )


def test_a_study_with_an_old_field_is_refused(study: Study) -> None:
    path = study.folder / "study.json"
    path.write_text(path.read_text().replace("question_sets", "kinds"))
    with pytest.raises(EvaluationError) as caught:
        open_study(study.folder)
    assert str(caught.value) == f"{path}: unknown field kinds; it is now question_sets."


def test_every_question_has_a_unique_name() -> None:
    assert tuple(QUESTIONS) == QUESTION_SETS
    names = [question.name for questions in QUESTIONS.values() for question in questions]
    assert len(names) == len(set(names))
    assert all(len(set(q.choices)) >= 2 for questions in QUESTIONS.values() for q in questions)


def test_the_tie_is_between_the_two_sides() -> None:
    assert QUESTIONS["pairwise"][0].choices == ("first", TIE, "second")
