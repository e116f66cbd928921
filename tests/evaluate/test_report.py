import json
import re
from pathlib import Path

import pytest

from calumma.evaluate.metric import Metric
from calumma.evaluate.report import EvalReport
from tests.browser import problems_of_file

REPORT = EvalReport(
    metrics=[
        Metric("codebook_used", 0.5, None, 7, None, "share", "of <8> codes"),
        Metric("text_bits_per_token", 2.0, 3.0, 9, (1.5, 2.5), "bits"),
    ],
    seconds=1.23456,
    seed=4,
    model="out/<model>",
    command="calumma evaluate",
)


def test_the_json_is_the_contracts(tmp_path: Path) -> None:
    REPORT.save(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == {
        "figures": [
            {"name": "codebook_used", "value": 0.5, "baseline": None, "n": 7, "interval": None,
             "unit": "share"},
            {"name": "text_bits_per_token", "value": 2.0, "baseline": 3.0, "n": 9,
             "interval": [1.5, 2.5], "unit": "bits"},
        ],
        "model": "out/<model>", "command": "calumma evaluate", "seconds": 1.235, "seed": 4,
        "notes": {"codebook_used": "of <8> codes"},
    }  # fmt: skip


def test_the_page_shows_every_metric_escaped_and_loads_nothing(tmp_path: Path) -> None:
    REPORT.save(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<th>text_bits_per_token</th><td>2</td><td>3</td><td>1.5 to 2.5</td><td>9</td>" in page
    assert "of &lt;8&gt; codes" in page
    assert "out/&lt;model&gt;" in page
    assert "src=" not in page
    assert page.count("href=") == 1 and 'href="data:,"' in page


def test_metrics_are_grouped_by_task_with_marks_of_baselines() -> None:
    metric = Metric("piqa_acc", 0.5, None, 9, (0.25, 0.75), "share", task="piqa")
    page = EvalReport(
        metrics=[metric.with_baselines({"chance": 0.1, "unigram": 0.3}), *REPORT.metrics], seconds=1, seed=0
    ).to_html()
    assert re.search(r"<h2>piqa</h2><div [^>]*aria-label=\"Metrics of piqa\"[^>]*><table>", page)
    assert "<td>0.3<small>chance 0.1, unigram 0.3</small></td>" in page
    assert 'class="baseline" x1="20.0"' in page and 'class="baseline" x1="50.0"' in page
    assert 'class="interval" x1="42.5" x2="117.5"' in page and 'cx="80.0"' in page
    # Bits have no line from 0 to 1.
    assert page.count("<svg") == 2


def test_metrics_are_found_by_name() -> None:
    assert REPORT.metric("text_bits_per_token").value == 2.0
    with pytest.raises(KeyError):
        REPORT.metric("codebook")


def test_the_page_is_accessible_and_fits_each_width(tmp_path: Path) -> None:
    metric = Metric(
        "draws_color_of_each", 0.98, None, 200, (0.95, 0.99), "share", "both shapes " * 9, task="still-lifes"
    )
    baselines = {"another prompt's image": 0.005, "nearest training image": 0.003}
    EvalReport(metrics=[metric.with_baselines(baselines)], seconds=1, seed=0).save(tmp_path)
    assert problems_of_file(tmp_path / "report.html") == []
