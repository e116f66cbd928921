"""The study of the paper's human evaluation, on a coarse grid."""

import json
import subprocess
import sys
from pathlib import Path

STUDY = Path(__file__).parents[2] / "studies" / "judgment" / "paper_alpha.py"


def test_win_rates_match_the_counts_and_the_printed_alphas_are_not_nominal() -> None:
    finished = subprocess.run([sys.executable, STUDY, "--quick"], capture_output=True, text=True, check=True)
    results = json.loads(finished.stdout.splitlines()[-1])
    assert results["rates_checked"] == 60 and results["rates_that_differ"] == []
    for row in results["pairwise"].values():
        low, high = row["alpha_interval"]
        if row["alpha_printed"] is not None:
            assert row["alpha_nominal"][1] < row["alpha_printed"]
            assert low < row["alpha_printed"] < high
