"""What annotators said, counted: majorities, win rates, shares, and how far they agree."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calumma.compare.agreement import Alpha, krippendorff_alpha, majority, unanimity, win_rate
from calumma.compare.judgement_store import Judgement
from calumma.compare.prompt_sets import CATEGORY_ATTRIBUTE, prompt_modality
from calumma.compare.questions import QUESTIONS, TIE, QuestionSet, SurveyQuestion
from calumma.compare.study import Study, StudyItem
from calumma.documents.document import Document
from calumma.evaluate.metric import Metric, bootstrap_interval, wilson_interval
from calumma.files import atomic_write

_POINTS = {"first": 1.0, TIE: 0.5, "second": 0.0}

NO_MAJORITY = "no majority"


@dataclass(frozen=True)
class QuestionVotes:
    """The votes on one question about one group of systems."""

    question: SurveyQuestion
    systems: tuple[str, ...]

    votes: dict[str, list[str]]
    """By prompt: those of whole items, which have as many as the study wants."""

    num_incomplete: int
    """Items that lack annotators and are not counted."""

    def majorities(self, otherwise: str) -> dict[str, str]:
        """By prompt."""
        return {prompt: majority(votes, otherwise) for prompt, votes in self.votes.items()}


def collect_votes(study: Study, judgements: Sequence[Judgement]) -> Iterator[QuestionVotes]:
    """The votes, question by question, for each system or pair of them."""
    said: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        said.setdefault(judgement.item, []).append(judgement)
    groups: dict[tuple[QuestionSet, tuple[str, ...]], list[StudyItem]] = {}
    for item in study.items():
        groups.setdefault((item.question_set, item.systems), []).append(item)
    for (kind, systems), items in groups.items():
        whole = [item for item in items if len(said.get(item.key, ())) >= study.annotators]
        for question in QUESTIONS[kind]:
            votes = {
                item.prompt: [told.answers[question.name] for told in said[item.key]]
                for item in whole
            }
            yield QuestionVotes(question, systems, votes, len(items) - len(whole))


def study_metrics(study: Study, judgements: Sequence[Judgement]) -> list[Metric]:
    """All figures of a study; of what nobody has judged yet there are none."""
    made: list[Metric] = []
    for told in collect_votes(study, judgements):
        if told.votes:
            of_kind = _pairwise if told.question.name == "preference" else _shares
            made += of_kind(study, told)
            made += _agreement(study, told)
    return made


def vote_tables(study: Study, judgements: Sequence[Judgement]) -> dict[str, Any]:
    """The counts behind the figures, by category and by what prompts hold."""
    counted: dict[str, Any] = {}
    for told in collect_votes(study, judgements):
        pairwise = told.question.name == "preference"
        chosen = told.majorities(TIE if pairwise else NO_MAJORITY)
        agreed = unanimity(list(told.votes.values()))
        counted[_name(told)] = {
            "annotators_agree": {
                "all": agreed.all, "majority": agreed.majority, "none": agreed.none,
            },
            "waiting": told.num_incomplete,
            "counts": {
                group: dict(Counter(chosen[prompt] for prompt in prompts))
                for group, prompts in _groups(study, chosen)
            },
        }  # fmt: skip
    return counted


def _name(told: QuestionVotes) -> str:
    return f"{told.question.name}[{' against '.join(told.systems)}]"


def _groups(study: Study, prompts: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """All prompts, those of each category, and those with and without pictures."""
    told = list(prompts)
    yield "all", told
    for of in (lambda prompt: prompt.attributes.get(CATEGORY_ATTRIBUTE, ""), _modality_group):
        names = sorted({of(study.prompts[prompt]) for prompt in told} - {""})
        for name in names:
            yield name, [prompt for prompt in told if of(study.prompts[prompt]) == name]


def _modality_group(prompt: Document) -> str:
    return f"{prompt_modality(prompt)} prompts"


def _pairwise(study: Study, told: QuestionVotes) -> Iterator[Metric]:
    chosen = told.majorities(TIE)
    for group, prompts in _groups(study, chosen):
        counts = Counter(chosen[prompt] for prompt in prompts)
        wins, ties, losses = (counts[word] for word in ("first", TIE, "second"))
        points = [_POINTS[chosen[prompt]] for prompt in prompts]
        yield Metric(
            name=_in_group(f"win_rate[{' against '.join(told.systems)}]", group),
            value=win_rate(wins, ties, losses),
            baseline=0.5,
            n=len(prompts),
            interval=bootstrap_interval(points, seed=study.seed),
            unit="share",
            note=f"{wins} won, {ties} tied, {losses} lost; a tie is half a win; interval by "
            "bootstrap over prompts",
        )


def _shares(study: Study, told: QuestionVotes) -> Iterator[Metric]:
    chosen = told.majorities(NO_MAJORITY)
    words = [*told.question.choices, NO_MAJORITY]
    for group, prompts in _groups(study, chosen):
        counts = Counter(chosen[prompt] for prompt in prompts)
        for word in words:
            if word == NO_MAJORITY and not counts[word]:
                continue
            yield Metric(
                name=_in_group(f"{_name(told)}={word}", group),
                value=counts[word] / len(prompts),
                baseline=None,
                n=len(prompts),
                interval=wilson_interval(counts[word], len(prompts)),
                unit="share",
                note=f"{counts[word]} of {len(prompts)} by majority of {study.annotators}",
            )


def _agreement(study: Study, told: QuestionVotes) -> Iterator[Metric]:
    votes = list(told.votes.values())
    measured = partial(krippendorff_alpha, votes, told.question.choices, seed=study.seed)
    alpha: Alpha | None = measured(told.question.level)
    if alpha is None:
        return
    agreed = unanimity(votes)
    yield Metric(
        name=f"alpha:{_name(told)}",
        value=alpha.value,
        baseline=0.0,
        n=alpha.items,
        interval=alpha.interval,
        unit="Krippendorff's alpha",
        note=f"{told.question.level}; all agree on {agreed.all}, a majority on {agreed.majority}, "
        f"none on {agreed.none}; bootstrap over items",
    )


def _in_group(name: str, group: str) -> str:
    return name if group == "all" else f"{name}/{group}"


def write_judgements(path: Path, study: Study, judgements: Sequence[Judgement]) -> None:
    """Write every answer of every annotator as one line of CSV.

    Raises:
        OutputError: the file cannot be written.
    """
    items = {item.key: item for item in study.items()}
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("kind", "prompt", "systems", "annotator", "question", "answer", "swapped", "seconds")
        )
        for told in judgements:
            item = items[told.item]
            about = (item.question_set, item.prompt, " against ".join(item.systems), told.annotator)
            for question, answer in told.answers.items():
                writer.writerow((*about, question, answer, int(told.swapped), told.seconds))


def median_seconds(judgements: Sequence[Judgement]) -> float:
    """The median time annotators took for an item; 0 where there is none."""
    return float(np.median([judgement.seconds for judgement in judgements] or [0.0]))
