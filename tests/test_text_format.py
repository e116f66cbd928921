from __future__ import annotations

import pytest

from calumma.text_format import counted, duration, nearest


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1,000 images")]
)
def test_one_thing_is_no_plural(number: int, told: str) -> None:
    assert counted(number, "image") == told


def test_a_time_is_told_in_a_unit_that_one_can_picture() -> None:
    told = [duration(seconds) for seconds in (0.07, 119, 120, 7199, 7200, 172_800, 2e7)]
    assert told == [
        *("0.07 seconds", "119 seconds", "2 minutes", "120 minutes"),
        *("2 hours", "2 days", "231 days"),
    ]


def test_the_nearest_name_is_the_one_that_was_meant() -> None:
    names = ["likelihood", "retrieval", "reconstruction"]
    assert nearest("retrievel", names) == "retrieval"
    assert nearest("reconstructoin", iter(names)) == "reconstruction"


def test_nothing_is_near_to_another_word() -> None:
    assert nearest("piqa", ["likelihood", "retrieval"]) is None
    assert nearest("piqa", []) is None
