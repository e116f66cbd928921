"""Samples of a run: their files, and the strip of the report."""

import json
from pathlib import Path

import PIL.Image
import pytest

from calumma.errors import ConfigError
from calumma.train.run_report import RunReport, comparison_page, load_runs
from calumma.train.run_samples import MAX_SHOWN_STEPS, SampleConfig, sample_steps, sample_strip, write_step_samples
from tests.browser import browser, serious_violations
from tests.train.conftest import OpenRunLog

PROMPTS = ("a <red> circle", "zwölf blaue Birnen")


def write(run: Path, *steps: int, prompts: tuple[str, ...] = PROMPTS) -> None:
    for step in steps:
        write_step_samples(run, step, {p: PIL.Image.new("RGB", (8, 8), (step, n, 0)) for n, p in enumerate(prompts)})


@pytest.mark.parametrize(("interval", "prompts"), [(-1, ["a"]), (5, [])])
def test_a_config_without_prompts_or_with_a_negative_interval_is_refused(interval: int, prompts: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        SampleConfig(interval=interval, prompts=prompts)
    assert str(refused.value) == (
        f"samples.interval={interval} with {len(prompts)} samples.prompts; expected at least 0, and captions to draw. "
        "Set samples.prompts."
    )


def test_a_strip_has_a_row_per_prompt_and_a_column_per_step(tmp_path: Path) -> None:
    write(tmp_path, 0, 50, 100)
    strip = sample_strip(tmp_path, 100)
    assert strip.count("<tr>") == 1 + len(PROMPTS) and strip.count("<img") == 3 * len(PROMPTS)
    assert '<th scope="col">step 50</th>' in strip
    assert '<th scope="row">a &lt;red&gt; circle</th>' in strip
    assert 'alt="zwölf blaue Birnen, step 100"' in strip


def test_later_steps_of_another_course_are_not_shown(tmp_path: Path) -> None:
    write(tmp_path, 0, 50, 100)
    assert sample_steps(tmp_path, 99) == [0, 50]
    assert "step 100" not in sample_strip(tmp_path, 99)


def test_images_of_prompts_that_have_changed_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, 0, prompts=("old", PROMPTS[0]))
    write(tmp_path, 50)
    strip = sample_strip(tmp_path, 50)
    assert "old" not in strip and strip.count("<img") == 3


def test_a_step_that_is_drawn_again_is_shown_as_it_is_now(tmp_path: Path) -> None:
    write(tmp_path, 0)
    before = sample_strip(tmp_path, 0)
    write_step_samples(tmp_path, 0, {PROMPTS[0]: PIL.Image.new("RGB", (9, 9), "white")})
    assert sample_strip(tmp_path, 0) != before


def test_of_many_steps_some_are_shown_the_first_and_the_last_among_them(tmp_path: Path) -> None:
    write(tmp_path, *range(0, 250, 10), prompts=("a",))
    strip = sample_strip(tmp_path, 240)
    assert strip.count("<img") == MAX_SHOWN_STEPS
    assert "step 0<" in strip and "step 240<" in strip


def test_large_images_are_stored_small(tmp_path: Path) -> None:
    write_step_samples(tmp_path, 0, {"a": PIL.Image.new("L", (512, 256))})
    with PIL.Image.open(tmp_path / "samples" / "step-00000000" / "0.png") as image:
        assert image.size == (128, 64)


def test_a_run_without_samples_has_no_strip(tmp_path: Path) -> None:
    assert sample_strip(tmp_path, 10) == ""


def test_the_report_and_the_comparison_show_the_strip(tmp_path: Path, open_run_log: OpenRunLog) -> None:
    write(tmp_path, 0, 4, 8)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in (1, 2, 3, 4)))
    report = RunReport(open_run_log(tmp_path, 4), 8, 10.0)
    report.resume(4)
    shown = report.to_html("running")
    assert shown.count("<img") == 2 * len(PROMPTS)
    assert "<h2>Samples</h2>" in shown
    compared = comparison_page(load_runs([tmp_path]))
    assert f"<h2>Samples of {tmp_path.name}</h2>" in compared and compared.count("<img") == 2 * len(PROMPTS)


def test_the_page_of_a_run_reloads_until_the_reader_stops_it_and_is_accessible(
    tmp_path: Path, open_run_log: OpenRunLog
) -> None:
    write(tmp_path, 0)
    report = RunReport(open_run_log(tmp_path, 1), 8, 10.0)
    report.resume(1)
    report.write("running")
    with browser() as chromium:
        page = chromium.new_context(bypass_csp=True).new_page()  # for axe
        page.clock.install()
        page.goto((tmp_path / "report.html").as_uri())
        assert serious_violations(page) == []
        with page.expect_navigation():
            page.clock.fast_forward(11_000)
        page.get_by_label("reload every 10 s").uncheck()
        page.wait_for_url("**#paused")
        page.evaluate("window.isTheSame = true")
        page.clock.fast_forward(30_000)
        page.wait_for_timeout(200)
        assert page.evaluate("window.isTheSame")
        page.reload()
        assert not page.get_by_label("reload every 10 s").is_checked()
