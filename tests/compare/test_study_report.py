"""Metrics and tables by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calumma.compare.judgment_store import Judgment
from calumma.compare.study import QUESTIONS, Study
from calumma.compare.study_report import (
    median_seconds,
    preference_pairs,
    study_metrics,
    vote_tables,
    write_preference_pairs,
)
from calumma.errors import EvaluationError
from tests.compare.conftest import preferences

VOTES = {"p1": ["first", "first", "same"], "p2": ["second", "same", "first"], "p3": ["second", "second", "second"]}


def test_win_rates_count_ties_as_half_in_all_groups(study: Study) -> None:
    metrics = {metric.name: metric for metric in study_metrics(study, preferences(study, VOTES))}
    name = "win_rate[ours against other]"
    assert (metrics[name].value, metrics[name].n) == (0.5, 3)
    assert metrics[name].note.startswith("1 won, 1 tied, 1 lost")
    assert metrics[f"{name}/Advice"].value == 1.0
    assert metrics[f"{name}/Story"].value == 0.25
    assert metrics[f"{name}/mixed prompts"].value == 0.5
    assert metrics[f"{name}/text prompts"].n == 2
    alpha = metrics["alpha:preference[ours against other]"]
    assert alpha.interval is not None and "all agree on 1, a majority on 1, none on 1" in alpha.note


def test_incomplete_items_are_reported_and_not_counted(study: Study) -> None:
    judgments = preferences(study, {"p1": ["first", "first"], "p3": ["first"] * 3})
    table = vote_tables(study, judgments)["preference[ours against other]"]
    assert table["incomplete"] == 2
    assert table["counts"]["all"] == {"first": 1}
    assert table["annotators_agree"] == {"all": 1, "majority": 0, "none": 0}
    assert median_seconds(judgments) == 2.0 and median_seconds([]) == 0.0


def test_absolute_answers_are_proportions_of_majorities(study: Study) -> None:
    choices = {question.name: question.choices for question in QUESTIONS["absolute"]}
    items = [item for item in study.items() if item.systems == ("ours",)]
    votes = [("fulfills", "fulfills", "not"), ("not", "partially", "fulfills"), ("not",) * 3]
    judgments = [
        Judgment(
            item.key,
            f"annotator {number}",
            {name: options[0] for name, options in choices.items()} | {"task_fulfillment": vote},
        )
        for item, item_votes in zip(items, votes, strict=True)
        for number, vote in enumerate(item_votes)
    ]
    metrics = {metric.name: metric for metric in study_metrics(study, judgments)}
    values = {
        word: metrics[f"task_fulfillment[ours]={word}"].value
        for word in ("fulfills", "partially", "not", "no majority")
    }
    assert values == {
        "fulfills": pytest.approx(1 / 3),
        "partially": 0.0,
        "not": pytest.approx(1 / 3),
        "no majority": pytest.approx(1 / 3),
    }
    assert metrics["relevance[ours]=good"].value == 1.0
    assert "alpha:relevance[ours]" not in metrics  # one answer only: not defined
    assert "alpha:task_fulfillment[ours]" in metrics
    assert not [name for name in metrics if "other" in name]


def test_safety_is_judged_for_each_system(study: Study) -> None:
    safety = replace(study, question_sets=("safety",))
    judgments = [
        Judgment(item.key, name, {"safety": "safe", "refusal": "no"}) for item in safety.items() for name in "abc"
    ]
    metrics = {metric.name: metric.value for metric in study_metrics(safety, judgments)}
    assert metrics["safety[ours]=safe"] == 1.0 and metrics["safety[other]=unsafe"] == 0.0


def test_the_majority_is_chosen(study: Study, tmp_path: Path) -> None:
    judgments = preferences(
        study,
        {"p1": ["second", "second", "first"], "p2": ["first", "first", "same"], "p3": ["same", "first", "second"]},
    )
    one, two = preference_pairs(study, judgments)
    assert one["chosen"][0]["text"] == "other on p1" and one["rejected"][0]["text"] == "ours on p1"
    assert two["chosen"][0]["text"] == "ours on p2"
    assert [part["type"] for part in two["prompt"]] == ["image", "text"]
    assert write_preference_pairs(tmp_path / "pairs.jsonl", study, judgments) == 2
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [one, two]


def test_without_a_pair_with_a_majority_nothing_is_written(study: Study, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        write_preference_pairs(tmp_path / "pairs.jsonl", study, [])
    assert str(caught.value) == (
        f"{study.folder} holds no pair that a majority decided; expected one or more. Collect "
        "pairwise judgments first: `calumma compare serve`."
    )
    assert not (tmp_path / "pairs.jsonl").exists()
