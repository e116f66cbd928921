"""What a run writes down: lines that are cut to a checkpoint's, and read again."""

from __future__ import annotations

import json
import math
from pathlib import Path

from calumma.train.run_log import StabilityEvent, read_metrics
from tests.train.conftest import OpenJournal


def written(journal: OpenJournal, run: Path, steps: int) -> None:
    """Metrics of so many steps."""
    made = journal(run, 0)
    for step in range(1, steps + 1):
        made.log_metrics({"step": step, "loss": step / 3})
    made.close()


def test_lines_beyond_the_checkpoint_go_and_the_newest_are_remembered(
    tmp_path: Path, open_journal: OpenJournal
) -> None:
    written(open_journal, tmp_path, 20)
    taken_up = open_journal(tmp_path, 12)
    expected = [{"step": step, "loss": step / 3} for step in range(8, 13)]
    assert taken_up.history == expected
    taken_up.log_metrics({"step": 13, "loss": math.inf})
    taken_up.close()
    assert taken_up.history == [*expected[1:], {"step": 13, "loss": None}]
    told = list(read_metrics(tmp_path))
    assert [one["step"] for one in told] == list(range(1, 14))
    assert told[-1] == {"step": 13, "loss": None}


def test_the_end_of_a_long_file_is_found_without_reading_it_whole(
    tmp_path: Path, open_journal: OpenJournal
) -> None:
    lines = [json.dumps({"step": step, "name": "x" * 9000}) for step in range(1, 30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert [one["step"] for one in open_journal(tmp_path, 29, kept=4).history] == [27, 28, 29]


def test_half_a_line_is_no_line(tmp_path: Path, open_journal: OpenJournal) -> None:
    written(open_journal, tmp_path, 3)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"event": "skip')
    assert [one["step"] for one in read_metrics(tmp_path)] == [1, 2, 3]
    taken_up = open_journal(tmp_path, 9)
    assert (len(taken_up.history), taken_up.events) == (3, [])
    taken_up.log_metrics({"step": 4})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[3] == '{"step": 4}'


def test_only_one_writes_and_all_know_the_events(tmp_path: Path, open_journal: OpenJournal) -> None:
    first, other = open_journal(tmp_path, 0), open_journal(tmp_path, 0, writes=False)
    first.log_event(StabilityEvent("warning", 3, "z grows", metric="log_z"))
    other.log_metrics({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    other.read()
    assert other.events == first.events == [StabilityEvent("warning", 3, "z grows", metric="log_z")]
    line = (tmp_path / "events.jsonl").read_text()
    assert line == '{"event": "warning", "step": 3, "message": "z grows", "metric": "log_z"}\n'


BACK = StabilityEvent("rollback", 9, "back", rollback_to_step=6, batches_consumed=9, lr_factor=0.5)


def test_events_that_led_to_a_roll_back_stay_and_later_ones_are_told_anew(
    tmp_path: Path, open_journal: OpenJournal
) -> None:
    made = open_journal(tmp_path, 0)
    events = [
        StabilityEvent("spike", 9, "up"),
        BACK,
        StabilityEvent("step_skipped", 7, ""),
        StabilityEvent("warning", 8, ""),
    ]
    for event in events:
        made.log_event(event)
    made.close()
    assert open_journal(tmp_path, 7).events == events[:3]
    assert open_journal(tmp_path, 6).events == events[:2]
    assert [one.lr_factor for one in made.rollbacks] == [0.5]


def test_a_roll_back_is_followed_once_and_the_latest_counts(
    tmp_path: Path, open_journal: OpenJournal
) -> None:
    made = open_journal(tmp_path, 0)
    assert made.pending_rollback(6, 6) is None
    made.log_event(BACK)
    assert made.pending_rollback(6, 6) is BACK
    assert made.pending_rollback(5, 5) is None
    assert made.pending_rollback(6, 9) is None  # followed: the batches are passed over
    again = StabilityEvent(
        "rollback", 8, "back", rollback_to_step=6, batches_consumed=11, lr_factor=0.25
    )
    made.log_event(again)
    assert made.pending_rollback(6, 6) is again
