"""Tests of the page of `calumma plan --html`: its choices, its numbers, the browser's view."""

import re
from pathlib import Path

import pytest

from calumma.cli.main import main
from tests.browser import browser, serious_violations

RUN = Path(__file__).parents[2] / "runs" / "decoder-37M.toml"
OPTIONS = ["--gpus", "4", "--gpu", "h100-80gb", "--data.global-batch-size", "16", "--data.micro-batch-size", "2"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plan") / "plan.html"
    assert main(["plan", str(RUN), *OPTIONS, "--html", str(file)]) == 0
    return file


def panel(page: str, name: str) -> str:
    found = re.search(f'<section class="plan" id="plan-{name}">(.*?)</section>', page, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_page_has_a_plan_for_each_choice(page_file: Path) -> None:
    page = page_file.read_text()
    assert len(re.findall('class="plan"', page)) == 5 * 5 * 3  # kinds, numbers of GPUs, checkpointing
    assert page.count(" checked>") == 3
    assert "<script" not in page


def test_a_panel_has_the_numbers_of_the_command_line(page_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    changed = ["--gpus", "8", "--gpu", "a100-40gb", *OPTIONS[4:], "--compute.activation-checkpointing", "full"]
    assert main(["plan", str(RUN), *changed]) == 0
    needs = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("GPU needs"))
    shown = panel(page_file.read_text(), "a100-40gb-8-full")
    assert f"<td>{needs.split()[2]} GiB</td>" in shown
    assert "Fits" in shown


def test_an_impossible_choice_has_its_error(page_file: Path) -> None:
    assert "Impossible: " in panel(page_file.read_text(), "h100-80gb-16-none")


def test_a_run_that_does_not_fit_is_refused_after_the_page_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.html"
    too_large = ["--data.micro-batch-size", "256", "--data.global-batch-size", "256"]
    assert main(["plan", str(RUN), "--gpus", "1", "--gpu", "a100-40gb", *too_large, "--html", str(file)]) == 2
    assert "expected a run that fits" in capsys.readouterr().err
    assert "Does not fit" in panel(file.read_text(), "a100-40gb-1-none")


def test_one_plan_is_visible_and_the_keyboard_changes_it(page_file: Path) -> None:
    with browser() as chromium:
        page = chromium.new_context(bypass_csp=True).new_page()  # for axe
        page.goto(page_file.as_uri())
        assert serious_violations(page) == []
        assert page.locator(".plan:visible").get_attribute("id") == "plan-h100-80gb-4-none"
        page.focus("#count-4")
        page.keyboard.press("ArrowRight")
        assert page.locator(".plan:visible").get_attribute("id") == "plan-h100-80gb-8-none"
