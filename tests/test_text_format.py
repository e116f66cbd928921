"""Counts, numbers and durations as text, and suggestions for mistyped names."""

import pytest

from calumma.text_format import closest_match, format_duration, format_number, pluralize


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1,000 images")]
)
def test_only_one_is_singular(number: int, expected: str) -> None:
    assert pluralize(number, "image") == expected


def test_numbers_have_four_significant_digits_and_thousands_separators() -> None:
    values = [0.0, -0.5, 0.123456, 12.34567, 999.96, 1234.5, -12_500.0, None]
    assert [format_number(value) for value in values] == [
        *("0", "-0.5", "0.1235", "12.35", "1000", "1,234", "-12,500", "-")
    ]


def test_durations_have_at_most_two_units() -> None:
    seconds = [0, 0.07, 1, 59.94, 59.95, 119, 120, 3599, 3600, 172_799, 172_800, 2e7]
    assert [format_duration(value) for value in seconds] == [
        *("0 s", "0.07 s", "1.0 s", "59.9 s", "1 min 0 s", "1 min 59 s", "2 min 0 s"),
        *("59 min 59 s", "1 h 0 min", "47 h 59 min", "2 d 0 h", "231 d 11 h"),
    ]


def test_a_mistyped_name_is_matched_to_the_most_similar_one() -> None:
    names = ["likelihood", "retrieval", "reconstruction"]
    assert closest_match("retrievel", names) == "retrieval"
    assert closest_match("reconstructoin", iter(names)) == "reconstruction"


def test_a_dissimilar_name_has_no_match() -> None:
    assert closest_match("piqa", ["likelihood", "retrieval"]) is None
    assert closest_match("piqa", []) is None
