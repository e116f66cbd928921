"""The paper's counts, on a coarse grid."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

STUDY = Path(__file__).parents[2] / "studies" / "judgement" / "paper_alpha.py"


def test_the_papers_rates_are_its_counts_and_its_alphas_need_an_order() -> None:
    told = subprocess.run(
        [sys.executable, STUDY, "--quick"], capture_output=True, text=True, check=True
    )
    seen = json.loads(told.stdout.splitlines()[-1])
    assert seen["rates_checked"] == 60 and seen["rates_that_differ"] == []
    for row in seen["pairwise"].values():
        low, high = row["alpha_interval"]
        if row["alpha_printed"] is not None:
            assert row["alpha_nominal"][1] < row["alpha_printed"]
            assert low < row["alpha_printed"] < high
