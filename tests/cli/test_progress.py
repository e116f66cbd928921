"""Progress: a bar on a terminal, plain lines elsewhere."""

import io

import pytest
import torch
from rich.console import Console

from calumma.cli import progress
from calumma.cli.progress import ProgressBar


def console(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    """Redirect progress bars to a string buffer."""
    output = io.StringIO()
    replaced = Console(file=output, force_terminal=terminal, width=120, highlight=False)
    monkeypatch.setattr(progress, "CONSOLE", replaced)
    return output


def clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Replace the clock by one that returns these seconds in turn, then always the last."""
    times = list(seconds)
    monkeypatch.setattr(progress.time, "monotonic", lambda: times.pop(0) if len(times) > 1 else times[0])


def test_a_file_gets_lines_with_throughput_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch, terminal=False)
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with ProgressBar("shards", 100, "documents") as bar:
        for second in (4.0, 11.0, 20.0):
            now = second
            bar.advance(20)
        now = 30.0
    assert output.getvalue().splitlines() == [
        "shards: 40 of 100 (3.6 documents/s, 16.0 s left)",
        "shards: 60 of 60 (2.0 documents/s)",
    ]


def test_long_remaining_times_are_in_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch, terminal=False)
    clock(monkeypatch, 0.0, 11.0)
    with ProgressBar("pre-training", 84_706, "steps") as bar:
        bar.advance(11)
    assert output.getvalue().splitlines()[0] == ("pre-training: 11 of 84706 (1.0 steps/s, 23 h 31 min left)")


def test_long_lines_are_not_wrapped_and_have_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch, terminal=False)
    clock(monkeypatch, 0.0, 11.0, 11.0)
    title = "convert " + "folder/" * 20 + "[red]"
    with ProgressBar(title, None, "MB") as bar:
        bar.advance(11)
    assert output.getvalue().splitlines()[-1] == f"{title}: 11 (1.0 MB/s)"


def test_work_of_unknown_length_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch, terminal=False)
    clock(monkeypatch, 0.0, 2.0)
    with ProgressBar("reading", None, "documents") as bar:
        bar.advance(7)
    assert output.getvalue() == "reading: 7 (3.5 documents/s)\n"


def test_earlier_work_does_not_count_in_the_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch, terminal=False)
    clock(monkeypatch, 0.0, 2.0)
    with ProgressBar("pre-training", 100, "steps") as bar:
        bar.start_at(90)
        bar.step(94, {"loss_text": 1.5, "loss_image": 2.25, "lr": 1.0})
    assert output.getvalue() == "pre-training: 94 of 94 (2.0 steps/s)\n"


def test_a_failed_task_prints_no_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch, terminal=False)
    with pytest.raises(ZeroDivisionError), ProgressBar("shards", 3, "documents"):
        raise ZeroDivisionError
    assert output.getvalue() == ""


def test_a_terminal_gets_a_bar_with_throughput_note_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch, terminal=True)
    with ProgressBar("pre-training", 10, "steps") as bar:
        bar.start_at(4)
        bar.step(7, {"loss_text": 1.5, "loss_image": 2.25})
    shown = output.getvalue()
    assert "pre-training" in shown
    assert "7/7" in shown
    assert "steps/s" in shown
    assert "left" in shown
    assert "loss_text 1.500 loss_image 2.250" in shown


def test_a_training_step_shows_its_main_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch, terminal=False)
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
        bar.start_at(0)
        bar.step(40, metrics)
    assert output.getvalue().splitlines()[0] == (
        "pre-training: 40 of 1000 (2.0 steps/s, 8 min 0 s left) loss_text 2.500 loss_image 4.250 "
        "log_z 11.30 output_norm 54.3 lr 3.0e-04 12,346 tokens/s"
    )


def test_a_rollback_moves_the_bar_back(monkeypatch: pytest.MonkeyPatch) -> None:
    console(monkeypatch, terminal=True)
    with ProgressBar("pre-training", 100, "steps") as bar:
        bar.start_at(50)
        bar.step(53, {"loss_text": 9.0})
        bar.step(51, {"loss_text": 1.0})
        assert bar.done == 51


def test_a_collapse_of_the_throughput_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch, terminal=False)
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with ProgressBar("pre-training", None, "steps") as bar:
        for done in (100, 110, 90, 100, 100, 49, 60):
            now += 11.0
            bar.advance(done)
        now += 1.0
    note = "(less than half the usual pace: other programs use this machine)"
    slow = [line.endswith(note) for line in output.getvalue().splitlines()]
    assert slow == [False, False, False, False, False, True, False, False]


@pytest.mark.parametrize(
    ("threads", "advice"), [(1, ""), (4, "; fewer threads may be quicker: stop, and resume with OMP_NUM_THREADS=2")]
)
def test_a_collapse_of_training_names_fewer_threads(
    threads: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = console(monkeypatch, terminal=False)
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with ProgressBar("pre-training", None, "steps") as bar:
        for step in (10, 20, 30, 40, 50, 54):
            now += 11.0
            bar.step(step, {})
    line = output.getvalue().splitlines()[-2]
    assert line.endswith(f"(less than half the usual pace: other programs use this machine{advice})")


def test_a_collapse_on_a_gpu_is_no_matter_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert progress._advice_on_threads() == ""
