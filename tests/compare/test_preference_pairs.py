"""Pairs with a majority become records; ties do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calumma.compare.preference_pairs import preference_pairs, write_preference_pairs
from calumma.compare.study import Study
from calumma.errors import EvaluationError
from tests.compare.conftest import preferences


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
