"""Stopping at a fault, and going on with a count."""

from __future__ import annotations

import pytest

from calumma.documents.error_policy import Faults, stop
from calumma.errors import DocumentError


def test_the_default_stops_at_the_first_fault() -> None:
    with pytest.raises(DocumentError, match="broken"):
        stop(DocumentError("broken"))


def test_faults_are_all_counted_and_the_first_few_kept() -> None:
    faults = Faults(keep=2)
    for number in range(5):
        faults(DocumentError(f"a.jsonl:{number}"))
    assert (faults.count, faults.messages) == (5, ["a.jsonl:0", "a.jsonl:1"])
