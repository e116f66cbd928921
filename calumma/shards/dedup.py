"""Two-stage deduplication, as in datatrove.

Stage 1 writes the signatures of the documents of each task. Stage 2 sorts all signatures; of the
documents with equal signatures it keeps the first in (task, index) order, and writes one list of
dropped documents per task. The result does not depend on the number of workers.

    .build/signatures/00000.json    the signatures of each document of a task
    .build/duplicates/00000.json    index in the task -> reason, and task and index of the original
"""

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from calumma.documents.document import Document
from calumma.documents.document_filter import DocumentFilter, FilterConfig, exact_signature, near_signature
from calumma.errors import ImageError
from calumma.files import read_json, write_json

DUPLICATE_REASONS = {"exact": "duplicate", "near": "near-duplicate"}
"""Reason recorded with a dropped document, by kind of signature."""

Signatures = dict[str, list[int | None]]


def document_signatures(documents: Iterable[Document], config: FilterConfig) -> Signatures:
    """Return the signatures of each document by kind.

    None where the rule is off or another rule drops the document, so no document is dropped as a
    duplicate of one that is not kept.
    """
    signatures: Signatures = {kind: [] for kind in DUPLICATE_REASONS}
    check = DocumentFilter(config, "drop").check
    for document in documents:
        is_kept = check(document) is None
        exact = near = None
        try:
            exact = exact_signature(document) if is_kept and config.exact_duplicates else None
            near = near_signature(document) if is_kept and config.near_duplicates else None
        except ImageError:
            exact = None  # the encoder drops it
        signatures["exact"].append(exact)
        signatures["near"].append(near)
    return signatures


def signature_path(work_dir: Path, task: int) -> Path:
    """Return the path of a task's signatures."""
    return work_dir / "signatures" / f"{task:05d}.json"


def duplicate_path(work_dir: Path, task: int) -> Path:
    """Return the path of a task's list of duplicates."""
    return work_dir / "duplicates" / f"{task:05d}.json"


def write_duplicates(work_dir: Path, num_tasks: int) -> None:
    """Compare all signatures and write the duplicates of each task."""
    duplicates: list[dict[str, Any]] = [{} for _ in range(num_tasks)]
    for kind, reason in DUPLICATE_REASONS.items():
        values, positions = _read_signatures(work_dir, num_tasks, kind)
        # A stable sort keeps the first of equal signatures first.
        order = np.argsort(values, kind="stable")
        values, positions = values[order], positions[order]
        later = np.flatnonzero(values[1:] == values[:-1]) + 1
        firsts = np.searchsorted(values, values[later])
        pairs = zip(positions[later].tolist(), positions[firsts].tolist(), strict=True)
        for (task, index), first in pairs:
            duplicates[task].setdefault(str(index), [reason, *first])
    for task, found in enumerate(duplicates):
        write_json(duplicate_path(work_dir, task), found)


def _read_signatures(
    work_dir: Path, num_tasks: int, kind: str
) -> tuple[np.ndarray[Any, np.dtype[np.uint64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Return all signatures of a kind [N], and the task and index of each [N, 2], in order.

    Takes 24 bytes of memory per signature.
    """
    values, positions = array("Q"), array("q")
    for task in range(num_tasks):
        for index, value in enumerate(read_json(signature_path(work_dir, task))[kind]):
            if value is not None:
                values.append(value)
                positions.extend((task, index))
    return np.array(values, np.uint64), np.array(positions, np.int64).reshape(-1, 2)
