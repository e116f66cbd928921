"""Statistics of a mixture."""

from pathlib import Path

import pytest

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.batches.mixture import MixtureStats, format_mixture_stats, measure_mixture, stage_two_weights
from calumma.errors import ConfigError
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


def test_stage_one_is_halved_and_the_rest_goes_to_added_sources() -> None:
    weights = stage_two_weights({"web": 6.0, "code": 2.0}, {"best": 3.0, "turns": 1.0})
    assert weights == {"web": 0.375, "code": 0.125, "best": 0.375, "turns": 0.125}


def test_a_source_of_both_stages_gets_both_weights() -> None:
    assert stage_two_weights({"a": 1.0}, {"a": 1.0, "b": 1.0}, stage_one_fraction=0.8) == pytest.approx(
        {"a": 0.9, "b": 0.1}
    )


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 2.0, "b": -1.0}])
def test_invalid_weights_are_refused(weights: dict[str, float]) -> None:
    for first, added in (({"a": 1.0}, weights), (weights, {"a": 1.0})):
        with pytest.raises(ConfigError) as caught:
            stage_two_weights(first, added)
        assert str(caught.value) == (f"a stage's weights are {weights}; expected none negative and one positive.")


def test_a_fraction_above_one_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        stage_two_weights({"a": 1.0}, {"b": 1.0}, stage_one_fraction=1.5)
    assert str(caught.value) == "stage_one_fraction=1.5; expected a fraction from 0 to 1."
