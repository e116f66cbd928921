"""The named sizes: as many parameters as the paper says, counted without memory for them."""

from pathlib import Path

import pytest
import torch

from calumma.errors import ConfigError
from calumma.model.decoder import Decoder
from calumma.model.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("name", "millions"),
    [("37M", 37.0), ("94M", 94.4), ("443M", 442.6), ("1.5B", 1502), ("7B", 7013), ("34B", 34_290)],
)
def test_names_are_numbers_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        decoder = Decoder(PRESETS[name])
    assert decoder.num_parameters / 1e6 == pytest.approx(millions, rel=2e-3)


def test_the_table_of_the_docs_says_the_same() -> None:
    page = (Path(__file__).parents[2] / "docs" / "decoder.md").read_text(encoding="utf-8")
    for name, shape in PRESETS.items():
        with torch.device("meta"):
            count = Decoder(shape).num_parameters
        heads = f"{shape.num_heads} ({shape.num_kv_heads})"
        cells = [f"{shape.model_dim:,}", f"{shape.num_layers}", heads]
        row = [name, *cells, f"{shape.feed_forward_dim:,}", f"{count:,}"]
        assert f"| {' | '.join(row)} |" in page


def test_the_recipes_of_the_paper() -> None:
    small, large = PRESETS["7B"], PRESETS["34B"]
    assert (small.norm_order, small.dropout, small.num_kv_heads) == ("pre", 0.1, 32)
    assert (large.norm_order, large.dropout, large.num_kv_heads) == ("reordered", 0.0, 8)
    assert {size.head_dim for size in (small, large)} == {128}
    assert {size.max_seq_len for size in PRESETS.values()} == {4096}


def test_an_unknown_size_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        preset("8B")
    assert str(caught.value) == ("size '8B' is not known; expected one of tiny, 37M, 94M, 443M, 1.5B, 7B, 34B.")
