"""A bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from calumma.cli import progress
from calumma.cli.progress import ProgressBar


def console(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    """Let bars write to a text of ours."""
    told = io.StringIO()
    made = Console(file=told, force_terminal=terminal, width=120, highlight=False)
    monkeypatch.setattr(progress, "CONSOLE", made)
    return told


def clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Let time stand at these seconds, one after the other, and then at the last."""
    times = list(seconds)
    monkeypatch.setattr(
        progress.time, "monotonic", lambda: times.pop(0) if len(times) > 1 else times[0]
    )


def test_a_file_gets_a_line_with_rate_and_time_left_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = console(monkeypatch, terminal=False)
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with ProgressBar("shards", 100, "documents") as bar:
        for second in (4.0, 11.0, 20.0):
            now = second
            bar.advance(20)
        now = 30.0
    assert told.getvalue().splitlines() == [
        "shards: 40 of 100 (3.6 documents/s, 16 seconds left)",
        "shards: 60 of 60 (2.0 documents/s)",
    ]


def test_hours_that_are_left_are_told_as_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    told = console(monkeypatch, terminal=False)
    clock(monkeypatch, 0.0, 11.0)
    with ProgressBar("pre-training", 84_706, "steps") as bar:
        bar.advance(11)
    assert told.getvalue().splitlines()[0] == (
        "pre-training: 11 of 84706 (1.0 steps/s, 23.5 hours left)"
    )


def test_a_line_of_a_log_is_not_broken_and_shown_to_the_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = console(monkeypatch, terminal=False)
    clock(monkeypatch, 0.0, 11.0, 11.0)
    title = "convert " + "folder/" * 20 + "[red]"
    with ProgressBar(title, None, "MB") as bar:
        bar.advance(11)
    assert told.getvalue().splitlines()[-1] == f"{title}: 11 (1.0 MB/s)"


def test_work_without_a_known_end_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told = console(monkeypatch, terminal=False)
    clock(monkeypatch, 0.0, 2.0)
    with ProgressBar("reading", None, "documents") as bar:
        bar.advance(7)
    assert told.getvalue() == "reading: 7 (3.5 documents/s)\n"


def test_what_was_done_before_does_not_count_in_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    told = console(monkeypatch, terminal=False)
    clock(monkeypatch, 0.0, 2.0)
    with ProgressBar("pre-training", 100, "steps") as bar:
        bar.step(90, {})
        bar.step(94, {"loss_text": 1.5, "loss_image": 2.25, "lr": 1.0})
    assert told.getvalue() == "pre-training: 94 of 94 (2.0 steps/s)\n"


def test_a_failure_says_no_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    told = console(monkeypatch, terminal=False)
    with pytest.raises(ZeroDivisionError), ProgressBar("shards", 3, "documents"):
        raise ZeroDivisionError
    assert told.getvalue() == ""


def test_a_terminal_gets_a_bar_with_rate_note_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = console(monkeypatch, terminal=True)
    with ProgressBar("pre-training", 10, "steps") as bar:
        bar.step(4, {})
        bar.step(7, {"loss_text": 1.5, "loss_image": 2.25})
    shown = told.getvalue()
    assert "pre-training" in shown
    assert "7/7" in shown
    assert "steps/s" in shown
    assert "left" in shown
    assert "text 1.500 image 2.250" in shown


def test_a_training_step_is_told_so_that_a_person_can_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = console(monkeypatch, terminal=False)
    clock(monkeypatch, 0.0, 20.0)
    metrics = {
        "loss": 3.0,
        "loss_text": 2.5,
        "loss_image": 4.25,
        "log_z": 11.3,
        "output_norm": 54.321,
        "lr": 3e-4,
        "tokens_per_second": 12345.6,
    }
    with ProgressBar("pre-training", 1000, "steps") as bar:
        bar.step(0, {})
        bar.step(40, metrics)
    assert told.getvalue().splitlines()[0] == (
        "pre-training: 40 of 1000 (2.0 steps/s, 8 minutes left) text 2.500 image 4.250 z 11.30 "
        "norm 54.3 rate 3.0e-04 12,346 ids/s"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_out_of_the_ordinary_has_a_line_of_its_own(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = console(monkeypatch, terminal=terminal)
    with ProgressBar("pre-training", 100, "steps") as bar:
        bar.step(50, {})
        bar.step(53, {"loss_text": 9.0, "events": ["step 53: [up]", "step 53: back to step 50"]})
        bar.step(51, {"loss_text": 1.0, "events": []})
        assert bar.done == 51
    assert "pre-training: step 53: [up]\n" in told.getvalue()
    assert "pre-training: step 53: back to step 50\n" in told.getvalue()
