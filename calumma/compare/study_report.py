"""Results of a study: majorities, win rates, inter-annotator agreement, and preference pairs for DPO."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calumma.compare.agreement import krippendorff_alpha, majority, unanimity, win_rate
from calumma.compare.judgment_store import Judgment
from calumma.compare.prompt_sets import CATEGORY_ATTRIBUTE, prompt_modality
from calumma.compare.study import QUESTIONS, TIE, QuestionSet, Study, StudyItem, SurveyQuestion
from calumma.documents.document import Document, document_to_json
from calumma.errors import EvaluationError
from calumma.evaluate.metric import Metric, bootstrap_interval, wilson_interval
from calumma.files import atomic_write

_POINTS = {"first": 1.0, TIE: 0.5, "second": 0.0}

NO_MAJORITY = "no majority"


@dataclass(frozen=True)
class QuestionVotes:
    """The votes on one question about one system, or pair of systems."""

    question: SurveyQuestion
    systems: tuple[str, ...]

    votes: dict[str, list[str]]
    """By prompt: the votes of complete items, which have all their annotators."""

    num_incomplete: int
    """Items that lack annotators and are not counted."""

    @property
    def name(self) -> str:
        """The question with the systems."""
        return f"{self.question.name}[{' against '.join(self.systems)}]"

    def majorities(self, default: str) -> dict[str, str]:
        """Return the majority by prompt."""
        return {prompt: majority(votes, default) for prompt, votes in self.votes.items()}


def collect_votes(study: Study, judgments: Sequence[Judgment]) -> Iterator[QuestionVotes]:
    """Yield the votes, question by question, for each system or pair of systems."""
    by_item: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        by_item.setdefault(judgment.item, []).append(judgment)
    groups: dict[tuple[QuestionSet, tuple[str, ...]], list[StudyItem]] = {}
    for item in study.items():
        groups.setdefault((item.question_set, item.systems), []).append(item)
    for (question_set, systems), items in groups.items():
        complete = [item for item in items if len(by_item.get(item.key, ())) >= study.annotators]
        for question in QUESTIONS[question_set]:
            votes = {
                item.prompt: [judgment.answers[question.name] for judgment in by_item[item.key]] for item in complete
            }
            yield QuestionVotes(question, systems, votes, len(items) - len(complete))


def study_metrics(study: Study, judgments: Sequence[Judgment]) -> list[Metric]:
    """Return all metrics of a study; questions without complete items have none."""
    metrics: list[Metric] = []
    for votes in collect_votes(study, judgments):
        if votes.votes:
            is_pairwise = votes.question.name == "preference"
            metrics += (_win_rates if is_pairwise else _proportions)(study, votes)
            metrics += _agreement(study, votes)
    return metrics


def vote_tables(study: Study, judgments: Sequence[Judgment]) -> dict[str, Any]:
    """Return the counts of majorities, by category and by modality of the prompt."""
    tables: dict[str, Any] = {}
    for votes in collect_votes(study, judgments):
        is_pairwise = votes.question.name == "preference"
        majorities = votes.majorities(TIE if is_pairwise else NO_MAJORITY)
        agreed = unanimity(list(votes.votes.values()))
        tables[votes.name] = {
            "annotators_agree": {
                "all": agreed.all, "majority": agreed.majority, "none": agreed.none,
            },
            "incomplete": votes.num_incomplete,
            "counts": {
                group: dict(Counter(majorities[prompt] for prompt in prompts))
                for group, prompts in _groups(study, majorities)
            },
        }  # fmt: skip
    return tables


def _groups(study: Study, prompts: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield all prompts, those of each category, and those with and without images."""
    ids = list(prompts)
    yield "all", ids
    for group_of in (_category, _modality):
        names = {id_: group_of(study.prompts[id_]) for id_ in ids}
        for name in sorted({*names.values()} - {""}):
            yield name, [id_ for id_ in ids if names[id_] == name]


def _category(prompt: Document) -> str:
    return prompt.attributes.get(CATEGORY_ATTRIBUTE, "")


def _modality(prompt: Document) -> str:
    return f"{prompt_modality(prompt)} prompts"


def _win_rates(study: Study, votes: QuestionVotes) -> Iterator[Metric]:
    majorities = votes.majorities(TIE)
    for group, prompts in _groups(study, majorities):
        counts = Counter(majorities[prompt] for prompt in prompts)
        wins, ties, losses = (counts[choice] for choice in ("first", TIE, "second"))
        points = [_POINTS[majorities[prompt]] for prompt in prompts]
        yield Metric(
            name=_in_group(f"win_rate[{' against '.join(votes.systems)}]", group),
            value=win_rate(wins, ties, losses),
            baseline=0.5,
            n=len(prompts),
            interval=bootstrap_interval(points, seed=study.seed),
            unit="share",
            note=f"{wins} won, {ties} tied, {losses} lost; a tie is half a win; interval by bootstrap over prompts",
        )


def _proportions(study: Study, votes: QuestionVotes) -> Iterator[Metric]:
    majorities = votes.majorities(NO_MAJORITY)
    for group, prompts in _groups(study, majorities):
        counts = Counter(majorities[prompt] for prompt in prompts)
        for choice in (*votes.question.choices, NO_MAJORITY):
            if choice == NO_MAJORITY and not counts[choice]:
                continue
            yield Metric(
                name=_in_group(f"{votes.name}={choice}", group),
                value=counts[choice] / len(prompts),
                baseline=None,
                n=len(prompts),
                interval=wilson_interval(counts[choice], len(prompts)),
                unit="share",
                note=f"{counts[choice]} of {len(prompts)} by majority of {study.annotators}",
            )


def _agreement(study: Study, votes: QuestionVotes) -> Iterator[Metric]:
    question, items = votes.question, list(votes.votes.values())
    alpha = krippendorff_alpha(items, question.choices, question.level, seed=study.seed)
    if alpha is None:
        return
    agreed = unanimity(items)
    yield Metric(
        name=f"alpha:{votes.name}",
        value=alpha.value,
        baseline=0.0,
        n=alpha.items,
        interval=alpha.interval,
        unit="Krippendorff's alpha",
        note=f"{question.level}; all agree on {agreed.all}, a majority on {agreed.majority}, "
        f"none on {agreed.none}; bootstrap over items",
    )


def _in_group(name: str, group: str) -> str:
    return name if group == "all" else f"{name}/{group}"


def write_judgments(path: Path, study: Study, judgments: Sequence[Judgment]) -> None:
    """Write every answer of every annotator as a line of CSV.

    Raises:
        OutputError: the file cannot be written.
    """
    items = {item.key: item for item in study.items()}
    columns = ("question_set", "prompt", "systems", "annotator", "question", "answer", "swapped")
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*columns, "seconds"))
        for each in judgments:
            item = items[each.item]
            systems = " against ".join(item.systems)
            key = (item.question_set, item.prompt, systems, each.annotator)
            for question, answer in each.answers.items():
                writer.writerow((*key, question, answer, int(each.swapped), each.seconds))


def median_seconds(judgments: Sequence[Judgment]) -> float:
    """Return the median time per item; 0 without judgments."""
    return float(np.median([judgment.seconds for judgment in judgments] or [0.0]))


def preference_pairs(study: Study, judgments: Sequence[Judgment]) -> Iterator[dict[str, Any]]:
    """Yield a record for each pair with a majority: {"id", "prompt", "chosen", "rejected"}.

    Ties and pairs without a majority are left out. Parts are those of documents, images embedded.
    """
    votes: dict[str, list[str]] = {}
    for judgment in judgments:
        if "preference" in judgment.answers:
            votes.setdefault(judgment.item, []).append(judgment.answers["preference"])
    for item in study.items():
        answer = majority(votes.get(item.key, []), TIE)
        if answer == TIE:
            continue
        chosen, rejected = item.systems if answer == "first" else reversed(item.systems)
        yield {
            "id": item.key,
            "prompt": _parts(study.prompts[item.prompt]),
            "chosen": _parts(study.answers[chosen][item.prompt]),
            "rejected": _parts(study.answers[rejected][item.prompt]),
            "source": "calumma compare",
        }


def write_preference_pairs(path: Path, study: Study, judgments: Sequence[Judgment]) -> int:
    """Write the pairs as JSON lines and return their number.

    Raises:
        EvaluationError: no pair has a majority.
        OutputError: the file cannot be written.
    """
    count = 0
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for pair in preference_pairs(study, judgments):
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")
            count += 1
        if not count:
            raise EvaluationError(
                f"{study.folder} holds no pair that a majority decided; expected one or more. "
                "Collect pairwise judgments first: `calumma compare serve`."
            )
    return count


def _parts(document: Document) -> list[dict[str, Any]]:
    flat = Document(id=document.id, content=tuple(document.parts()))
    parts: list[dict[str, Any]] = document_to_json(flat)["content"]
    return parts
