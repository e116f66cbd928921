from __future__ import annotations

import pytest

from calumma.wording import counted, nearest


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1,000 images")]
)
def test_one_thing_is_no_plural(number: int, told: str) -> None:
    assert counted(number, "image") == told


def test_the_nearest_name_is_the_one_that_was_meant() -> None:
    names = ["likelihood", "retrieval", "reconstruction"]
    assert nearest("retrievel", names) == "retrieval"
    assert nearest("reconstructoin", iter(names)) == "reconstruction"


def test_nothing_is_near_to_another_word() -> None:
    assert nearest("piqa", ["likelihood", "retrieval"]) is None
    assert nearest("piqa", []) is None
