"""Duplicates among all documents of a build, found the same by any number of workers.

Each task first writes down the signatures of its documents; then all are sorted once, and of those
that share one the earliest, by task and by place in it, is kept. What a task leaves out later is
looked up in a file of its own.

    .build/signatures/00000.json    of each document of a task: what judges it the same as another
    .build/duplicates/00000.json    places in the task, with the reason and the task and place kept
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from calumma.documents.document import Document
from calumma.documents.document_filter import (
    DocumentFilter,
    FilterConfig,
    exact_signature,
    near_signature,
)
from calumma.errors import ImageError
from calumma.files import read_json, write_json

KINDS = {"exact": "duplicate", "near": "near-duplicate"}
"""Reasons, by the kind of signature."""

Signatures = dict[str, list[int | None]]


def document_signatures(documents: Iterable[Document], config: FilterConfig) -> Signatures:
    """Of each document its signatures; None where a rule is off, or another leaves it out.

    So a document never goes as the duplicate of one that is not kept.
    """
    made: Signatures = {kind: [] for kind in KINDS}
    check = DocumentFilter(config, "drop").check
    for document in documents:
        kept = check(document) is None
        exact = near = None
        try:
            exact = exact_signature(document) if kept and config.exact_duplicates else None
            near = near_signature(document) if kept and config.near_duplicates else None
        except ImageError:
            exact = None  # whoever encodes it leaves it out
        made["exact"].append(exact)
        made["near"].append(near)
    return made


def signature_path(work: Path, number: int) -> Path:
    """Where a task's signatures are."""
    return work / "signatures" / f"{number:05d}.json"


def duplicate_path(work: Path, number: int) -> Path:
    """Where it stands which documents of a task are left out as duplicates."""
    return work / "duplicates" / f"{number:05d}.json"


def write_duplicates(work: Path, tasks: int) -> None:
    """Compare all signatures and write down, task by task, which documents are left out."""
    found: list[dict[str, Any]] = [{} for _ in range(tasks)]
    for kind, reason in KINDS.items():
        values, places = _gathered(work, tasks, kind)
        # Stable: of equal ones the earliest comes first.
        order = np.argsort(values, kind="stable")
        values, places = values[order], places[order]
        later = np.flatnonzero(values[1:] == values[:-1]) + 1
        firsts = np.searchsorted(values, values[later])
        for place, first in zip(places[later].tolist(), places[firsts].tolist(), strict=True):
            found[place[0]].setdefault(str(place[1]), [reason, *first])
    for number, duplicates in enumerate(found):
        write_json(duplicate_path(work, number), duplicates)


def _gathered(
    work: Path, tasks: int, kind: str
) -> tuple[np.ndarray[Any, np.dtype[np.uint64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """All signatures of a kind [N], and the task and place of each [N, 2], in order.

    24 bytes a document that has one: what comparing all documents of a build takes.
    """
    values, places = array("Q"), array("q")
    for number in range(tasks):
        for place, value in enumerate(read_json(signature_path(work, number))[kind]):
            if value is not None:
                values.append(value)
                places.extend((number, place))
    return np.array(values, np.uint64), np.array(places, np.int64).reshape(-1, 2)
