"""Selection and metrics of the last step; tests/end_to_end runs it completely."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from calumma.demo import measure
from calumma.documents.document import Document, Image, Text
from calumma.documents.writers import write_parquet
from calumma.evaluate.context import TextImagePair
from calumma.evaluate.metric import Metric
from calumma.shards.reader import ShardReader
from tests.images import png


def _pair(name: str, color: str = "") -> TextImagePair:
    attributes = {"colour": color} if color else {}
    image = Image(data=png(1))
    document = Document(id=name, content=(Text(name), image), attributes=attributes)
    return TextImagePair(document=document, text=name, text_ids=(), codes=(0,), image=image)


def _names(pairs: Sequence[TextImagePair]) -> list[str]:
    return [pair.text for pair in pairs]


def test_selected_pairs_have_shapes_and_objects() -> None:
    pairs = [_pair(f"object {n}") for n in range(20)] + [_pair(f"shape {n}", "red") for n in range(9)]
    selected = _names(measure._select_pairs(pairs, 6))
    assert selected == ["object 0", "object 5", "object 10", "object 15", "shape 0", "shape 4"]
    assert not set(selected) & set(_names(measure._select_pairs(pairs, 6, 1)))


def test_pairs_that_are_too_few_are_all_taken() -> None:
    assert _names(measure._select_pairs([_pair("only")], 6)) == ["only"]
    assert measure._select_pairs([], 6) == []


def test_documents_are_taken_evenly(tmp_path: Path) -> None:
    documents = [Document(id=str(n), content=(Image(data=png(n)),)) for n in range(10)]
    write_parquet(tmp_path / "d.parquet", documents)
    assert [d.id for d in measure._read_evenly(tmp_path / "d.parquet", 3)] == ["0", "3", "6"]
    assert len(measure._read_evenly(tmp_path / "d.parquet", 100)) == 10


def test_the_entropy_of_frequencies_by_hand() -> None:
    counts = np.array([9, 2, 1, 1, 0, 7])
    assert measure._entropy(counts, range(1, 5)) == pytest.approx(1.5)
    assert measure._entropy(counts, range(4, 5)) == 0.0


def test_tokens_are_counted_in_pairs_only(reader: ShardReader) -> None:
    # These shards have no source named objects or shapes.
    assert measure._token_counts(reader).sum() == 0


def test_losses_become_bits() -> None:
    metrics = [{"step": n, "loss_text": math.log(2), "loss_image": math.log(8)} for n in (1, 2)]
    curves = measure._modality_curves(metrics)
    means = {name: [(point.step, point.mean) for point in curve.points] for name, curve in curves.items()}
    assert means == {
        "text": [(1, pytest.approx(1.0)), (2, pytest.approx(1.0))],
        "image": [(1, pytest.approx(3.0)), (2, pytest.approx(3.0))],
    }


@pytest.mark.parametrize(
    ("name", "value", "baseline", "interval", "is_met"),
    [
        ("text_bits_per_token", 3.4, 5.0, None, True),
        ("text_bits_per_token", 3.6, 5.0, None, False),
        ("code_bits_right_minus_shuffled", -0.2, 0.0, (-0.3, -0.1), True),
        ("code_bits_right_minus_shuffled", -0.2, 0.0, (-0.5, 0.1), False),
        ("retrieval_text_given_image", 0.25, 0.1, None, True),
        ("retrieval_image_given_text", 0.24, 0.1, None, False),
        ("colour_asked_colour_drawn", 0.5, 0.125, None, True),
        ("reconstruction_psnr_db", 17.9, 12.0, None, False),
        ("codebook_used", 0.61, None, None, True),
        ("anything_else", 1.0, None, None, None),
    ],
)
def test_targets_are_met_or_not(
    name: str, value: float, baseline: float | None, interval: tuple[float, float] | None, is_met: bool | None
) -> None:
    metric = Metric(name=name, value=value, baseline=baseline, n=10, interval=interval, unit="x")
    assert measure._target(metric)[1] is is_met


def test_the_data_sources_are_named() -> None:
    lines = "\n".join(measure._attribution())
    assert measure.EMOJI_SOURCE in lines
    assert "wordnet" in lines
