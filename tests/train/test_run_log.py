"""Log files of a run: truncated to a checkpoint, and read again."""

import json
import math
from pathlib import Path

from calumma.train.run_log import read_metrics
from calumma.train.stability import StabilityEvent
from tests.train.conftest import OpenRunLog


def write_metrics(open_run_log: OpenRunLog, run: Path, steps: int) -> None:
    run_log = open_run_log(run, 0)
    for step in range(1, steps + 1):
        run_log.log_metrics({"step": step, "loss": step / 3})
    run_log.close()


def test_lines_after_the_checkpoint_are_removed_and_the_newest_are_kept_in_memory(
    tmp_path: Path, open_run_log: OpenRunLog
) -> None:
    write_metrics(open_run_log, tmp_path, 20)
    resumed = open_run_log(tmp_path, 12)
    expected = [{"step": step, "loss": step / 3} for step in range(8, 13)]
    assert resumed.history == expected
    resumed.log_metrics({"step": 13, "loss": math.inf})
    resumed.close()
    assert resumed.history == [*expected[1:], {"step": 13, "loss": None}]
    lines = list(read_metrics(tmp_path))
    assert [line["step"] for line in lines] == list(range(1, 14))
    assert lines[-1] == {"step": 13, "loss": None}


def test_the_end_of_a_long_file_is_read_without_the_rest(tmp_path: Path, open_run_log: OpenRunLog) -> None:
    lines = [json.dumps({"step": step, "name": "x" * 9000}) for step in range(1, 30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert [one["step"] for one in open_run_log(tmp_path, 29, history_length=4).history] == [27, 28, 29]


def test_an_incomplete_line_is_ignored(tmp_path: Path, open_run_log: OpenRunLog) -> None:
    write_metrics(open_run_log, tmp_path, 3)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"event": "skip')
    assert [one["step"] for one in read_metrics(tmp_path)] == [1, 2, 3]
    resumed = open_run_log(tmp_path, 9)
    assert (len(resumed.history), resumed.events) == (3, [])
    resumed.log_metrics({"step": 4})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[3] == '{"step": 4}'


def test_one_rank_writes_and_all_read_the_events(tmp_path: Path, open_run_log: OpenRunLog) -> None:
    first, other = open_run_log(tmp_path, 0), open_run_log(tmp_path, 0, writes=False)
    first.log_event(StabilityEvent("warning", 3, "z grows", metric="log_z"))
    other.log_metrics({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    other.open()
    assert other.events == first.events == [StabilityEvent("warning", 3, "z grows", metric="log_z")]
    line = (tmp_path / "events.jsonl").read_text()
    assert line == '{"event": "warning", "step": 3, "message": "z grows", "metric": "log_z"}\n'


ROLLBACK = StabilityEvent("rollback", 9, "back", rollback_to_step=6, batches_consumed=9, lr_factor=0.5)


def test_events_up_to_a_rollback_are_kept_and_later_ones_removed(tmp_path: Path, open_run_log: OpenRunLog) -> None:
    made = open_run_log(tmp_path, 0)
    events = [
        StabilityEvent("spike", 9, "up"),
        ROLLBACK,
        StabilityEvent("step_skipped", 7, ""),
        StabilityEvent("warning", 8, ""),
    ]
    for event in events:
        made.log_event(event)
    made.close()
    assert open_run_log(tmp_path, 7).events == events[:3]
    assert open_run_log(tmp_path, 6).events == events[:2]
    assert [one.lr_factor for one in made.rollbacks] == [0.5]


def test_a_rollback_is_applied_once_and_the_latest_counts(tmp_path: Path, open_run_log: OpenRunLog) -> None:
    made = open_run_log(tmp_path, 0)
    assert made.pending_rollback(6, 6) is None
    made.log_event(ROLLBACK)
    assert made.pending_rollback(6, 6) is ROLLBACK
    assert made.pending_rollback(5, 5) is None
    assert made.pending_rollback(6, 9) is None  # applied: the batches are skipped
    again = StabilityEvent("rollback", 8, "back", rollback_to_step=6, batches_consumed=11, lr_factor=0.25)
    made.log_event(again)
    assert made.pending_rollback(6, 6) is again
