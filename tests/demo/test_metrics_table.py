import math
import re

from calumma.demo.metrics_table import METRIC_DESCRIPTIONS, format_in_unit, metric_title, metrics_table
from calumma.demo.page_data import MetricRow
from calumma.evaluate.metric import Metric

BITS = MetricRow(Metric("code_bits_per_token", 3.971, 7.12, 1431, (3.9, 4.05), "bits", "a note"), "below 5", True)


def test_every_metric_of_the_report_is_described() -> None:
    names = (
        "text_bits_per_token code_bits_per_token retrieval_text_given_image "
        "retrieval_image_given_text code_bits_right_minus_shuffled colour_asked_colour_drawn "
        "reconstruction_psnr_db codebook_used shapes_drawn_right objects_drawn_right "
        "things_named_right colors_named_right"
    )
    assert set(names.split()) == set(METRIC_DESCRIPTIONS)


def test_an_unknown_metric_has_its_own_name() -> None:
    assert metric_title("shared_words") == "Shared words"


def test_values_by_hand() -> None:
    assert format_in_unit(0.125, "share") == "12.5 %"
    assert format_in_unit(1234.5, "") == "1,234.50"
    assert format_in_unit(math.nan, "dB") == "–"


def test_a_row_shows_all_fields() -> None:
    text = re.sub(r"<[^>]+>", " ", metrics_table([BITS]))
    for part in ("3.97 bits", "7.12 bits", "3.90 to 4.05", "1,431", "a note", "below 5", "✓ met"):
        assert part in text


def test_a_metric_without_a_target_has_no_status() -> None:
    plain = metrics_table([MetricRow(Metric("x", 1.0, None, 5, None, "dB"))])
    assert 'class="met"' not in plain and "–" in plain
    missed = metrics_table([MetricRow(Metric("x", -1.0, None, 5, (-2.0, -0.5), "dB"), "more", False)])
    assert "✗ not met" in missed and "−2.00 to −0.50" in missed


def test_names_and_notes_are_escaped() -> None:
    table = metrics_table([MetricRow(Metric("<b>", 1.0, None, 5, None, "<u>", "<i>"), "<s>")])
    assert not re.search(r"<[bius]>(?!1)", table)
