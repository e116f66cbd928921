"""What annotators preferred, as pairs that preference tuning learns from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from calumma.compare.agreement import majority
from calumma.compare.judgement_store import Judgement
from calumma.compare.questions import TIE
from calumma.compare.study import Study
from calumma.documents.document import Document, document_to_json
from calumma.errors import EvaluationError
from calumma.files import atomic_write


def preference_pairs(study: Study, judgements: Sequence[Judgement]) -> Iterator[dict[str, Any]]:
    """One record for each pair that a majority decided: {"id", "prompt", "chosen", "rejected"}.

    Ties and pairs without a majority are left out. Parts are those of documents, pictures inside.
    """
    votes: dict[str, list[str]] = {}
    for judgement in judgements:
        if "preference" in judgement.answers:
            votes.setdefault(judgement.item, []).append(judgement.answers["preference"])
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


def write_preference_pairs(path: Path, study: Study, judgements: Sequence[Judgement]) -> int:
    """Write the pairs as JSON lines; how many there are.

    Raises:
        EvaluationError: no pair is decided.
        OutputError: the file cannot be written.
    """
    count = 0
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for pair in preference_pairs(study, judgements):
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")
            count += 1
        if not count:
            raise EvaluationError(
                f"{study.folder} holds no pair that a majority decided; expected one or more. "
                "Collect pairwise judgements first: `calumma compare serve`."
            )
    return count


def _parts(document: Document) -> list[dict[str, Any]]:
    whole = Document(id=document.id, content=tuple(document.parts()))
    parts: list[dict[str, Any]] = document_to_json(whole)["content"]
    return parts
