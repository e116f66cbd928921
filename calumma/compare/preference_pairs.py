"""Preference pairs (prompt, chosen, rejected) from pairwise judgments, for DPO."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from calumma.compare.agreement import majority
from calumma.compare.judgment_store import Judgment
from calumma.compare.questions import TIE
from calumma.compare.study import Study
from calumma.documents.document import Document, document_to_json
from calumma.errors import EvaluationError
from calumma.files import atomic_write


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
