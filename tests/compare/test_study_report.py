"""Figures and tables, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calumma.compare.judgment_store import Judgment
from calumma.compare.questions import QUESTIONS
from calumma.compare.study import Study
from calumma.compare.study_report import median_seconds, study_metrics, vote_tables
from tests.compare.conftest import preferences

VOTES = {
    "p1": ["first", "first", "same"],
    "p2": ["second", "same", "first"],
    "p3": ["second", "second", "second"],
}


def test_win_rates_count_ties_as_half_in_all_groups(study: Study) -> None:
    told = {figure.name: figure for figure in study_metrics(study, preferences(study, VOTES))}
    name = "win_rate[ours against other]"
    assert (told[name].value, told[name].n) == (0.5, 3)
    assert told[name].note.startswith("1 won, 1 tied, 1 lost")
    assert told[f"{name}/Advice"].value == 1.0
    assert told[f"{name}/Story"].value == 0.25
    assert told[f"{name}/mixed prompts"].value == 0.5
    assert told[f"{name}/text prompts"].n == 2
    alpha = told["alpha:preference[ours against other]"]
    assert alpha.interval is not None and "all agree on 1, a majority on 1, none on 1" in alpha.note


def test_items_that_wait_for_annotators_are_told_and_not_counted(study: Study) -> None:
    judgments = preferences(study, {"p1": ["first", "first"], "p3": ["first"] * 3})
    table = vote_tables(study, judgments)["preference[ours against other]"]
    assert table["waiting"] == 2
    assert table["counts"]["all"] == {"first": 1}
    assert table["annotators_agree"] == {"all": 1, "majority": 0, "none": 0}
    assert median_seconds(judgments) == 2.0 and median_seconds([]) == 0.0


def test_absolute_answers_are_shares_of_majorities(study: Study) -> None:
    words = {question.name: question.choices for question in QUESTIONS["absolute"]}
    items = [item for item in study.items() if item.systems == ("ours",)]
    votes = [("fulfils", "fulfils", "not"), ("not", "partially", "fulfils"), ("not",) * 3]
    judgments = [
        Judgment(
            item.key,
            f"annotator {number}",
            {name: told[0] for name, told in words.items()} | {"task_fulfilment": vote},
        )
        for item, told in zip(items, votes, strict=True)
        for number, vote in enumerate(told)
    ]
    told = {figure.name: figure for figure in study_metrics(study, judgments)}
    values = {
        word: told[f"task_fulfilment[ours]={word}"].value
        for word in ("fulfils", "partially", "not", "no majority")
    }
    assert values == {
        "fulfils": pytest.approx(1 / 3),
        "partially": 0.0,
        "not": pytest.approx(1 / 3),
        "no majority": pytest.approx(1 / 3),
    }
    assert told["relevance[ours]=good"].value == 1.0
    assert "alpha:relevance[ours]" not in told  # one answer only: not defined
    assert "alpha:task_fulfilment[ours]" in told
    assert not [name for name in told if "other" in name]


def test_safety_is_asked_of_each_system(study: Study) -> None:
    asked = replace(study, kinds=("safety",))
    judgments = [
        Judgment(item.key, name, {"safety": "safe", "refusal": "no"})
        for item in asked.items()
        for name in "abc"
    ]
    told = {figure.name: figure.value for figure in study_metrics(asked, judgments)}
    assert told["safety[ours]=safe"] == 1.0 and told["safety[other]=unsafe"] == 0.0
