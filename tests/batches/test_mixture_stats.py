"""Statistics of a mixture."""

from __future__ import annotations

from pathlib import Path

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.batches.mixture_stats import MixtureStats, format_mixture_stats, measure_mixture
from tests.batches.shards_of_three import written


def test_counts_are_those_of_the_batches(tmp_path: Path) -> None:
    config = DataConfig(seq_len=16, global_batch_size=2, pack_window=3)
    loaders = [PackedLoader(written(tmp_path), config) for _ in range(2)]
    for loader in loaders:
        loader.set_mixture({"pairs": 1.0, "answers": 1.0})
    found = measure_mixture(loaders[0], 7)
    batches = [loaders[1].next() for _ in range(4)]
    assert found.num_rows == 8
    assert found.num_tokens == sum(int((batch.document_ids >= 0).sum()) for batch in batches)
    assert found.num_loss_tokens == sum(batch.num_loss_tokens for batch in batches)
    assert found.non_padding_fraction == found.num_tokens / (8 * 16)
    assert found.labels["pairs", "text"] == found.sequences["pairs"]
    assert found.labels["pairs", "image"] == 2 * found.sequences["pairs"]
    assert found.labels["answers", "control"] == 4 * found.sequences["answers"]
    assert sum(found.label_fraction(kind) for kind in ("text", "image", "control")) == 1.0
    assert found.max_length == 7


def test_statistics_are_formatted() -> None:
    found = MixtureStats(num_rows=2, seq_len=100, num_tokens=160, num_loss_tokens=80, max_length=40)
    found.sequences.update({"pairs": 4, "text": 1})
    found.labels.update({("pairs", "image"): 80, ("pairs", "text"): 40, ("text", "text"): 40})
    assert format_mixture_stats(found) == [
        "2 rows of 100 tokens: 80.0% full, 50.0% of it in the loss, 50.0% image codes; longest sequence 40",
        "source   sequences      tokens    fraction",
        "pairs            4         120       75.0%",
        "text             1          40       25.0%",
    ]
