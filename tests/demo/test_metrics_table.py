import math
import re

from calumma.demo.metrics_table import (
    METRIC_DESCRIPTIONS,
    metric_title,
    metrics_table,
    shown_interval,
    shown_value,
)
from calumma.demo.page_data import MetricRow

BITS = MetricRow(
    "code_bits_per_token", 3.971, 7.12, 1431, (3.9, 4.05), "bits", "a note", "under 5", True
)


def test_every_figure_of_the_report_has_plain_words() -> None:
    names = (
        "text_bits_per_token code_bits_per_token retrieval_text_given_image "
        "retrieval_image_given_text code_bits_right_minus_shuffled colour_asked_colour_drawn "
        "reconstruction_psnr_db codebook_used"
    )
    assert set(names.split()) == set(METRIC_DESCRIPTIONS)


def test_an_unknown_figure_is_named_by_its_own_name() -> None:
    assert metric_title("shared_words") == "Shared words"


def test_values_by_hand() -> None:
    assert shown_value(0.125, "share") == "12.5 %"
    assert shown_value(1234.5, "") == "1,234.50"
    assert shown_value(math.nan, "dB") == "–"
    assert shown_interval((-0.36, -0.26), "bits") == "−0.36 to −0.26"
    assert shown_interval(None, "bits") == ""


def test_a_row_shows_all_that_it_holds() -> None:
    text = re.sub(r"<[^>]+>", " ", metrics_table([BITS]))
    for piece in ("3.97 bits", "7.12 bits", "3.90 to 4.05", "1,431", "a note", "under 5", "✓ met"):
        assert piece in text


def test_a_figure_without_a_bar_has_no_verdict() -> None:
    plain = metrics_table([MetricRow("x", 1.0, None, 5, None, "dB")])
    assert "met" not in plain and "–" in plain
    missed = metrics_table([MetricRow("x", 1.0, None, 5, None, "dB", "", "more", False)])
    assert "✗ not met" in missed


def test_names_and_notes_are_escaped() -> None:
    drawn = metrics_table([MetricRow("<b>", 1.0, None, 5, None, "<u>", "<i>", "<s>")])
    assert not re.search(r"<[bius]>(?!1)", drawn)
