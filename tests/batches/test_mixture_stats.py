"""Counts over rows of a stream."""

from __future__ import annotations

from pathlib import Path

from calumma.batches.loader import DataConfig, Stream
from calumma.batches.mixture_stats import Survey, survey, survey_lines
from tests.batches.shards_of_three import written


def test_counts_are_those_of_the_batches(tmp_path: Path) -> None:
    config = DataConfig(seq_len=16, global_batch_size=2, pack_window=3)
    streams = [Stream(written(tmp_path), config) for _ in range(2)]
    for stream in streams:
        stream.mix({"pairs": 1.0, "answers": 1.0})
    found = survey(streams[0], 7)
    batches = [streams[1].next() for _ in range(4)]
    assert found.rows == 8
    assert found.placed == sum(int((batch.document_ids >= 0).sum()) for batch in batches)
    assert found.counted == sum(batch.num_loss_tokens for batch in batches)
    assert found.fill == found.placed / (8 * 16)
    assert found.targets["pairs", "text"] == found.sequences["pairs"]
    assert found.targets["pairs", "codes"] == 2 * found.sequences["pairs"]
    assert found.targets["answers", "control"] == 4 * found.sequences["answers"]
    assert sum(found.share(kind) for kind in ("text", "codes", "control")) == 1.0
    assert found.longest == 7


def test_a_survey_is_told_in_lines() -> None:
    found = Survey(rows=2, row_length=100, placed=160, counted=80, longest=40)
    found.sequences.update({"pairs": 4, "text": 1})
    found.targets.update({("pairs", "codes"): 80, ("pairs", "text"): 40, ("text", "text"): 40})
    assert survey_lines(found) == [
        "2 rows of 100: 80.0% full, 50.0% of it counted, 50.0% codes of images; "
        "longest sequence 40",
        "source   sequences         ids       share",
        "pairs            4         120       75.0%",
        "text             1          40       25.0%",
    ]
