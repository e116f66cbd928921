"""The documentation has the figures of the model in the package."""

import doctest
import re
import subprocess
import sys

import pytest

from calumma.evaluate.still_lifes import make_sheet
from scripts import still_life_figures
from scripts.still_life_figures import CARD, PAGES, ROOT, ROWS, Figure, read_card, read_sheet, write_figures


def test_the_pages_have_the_figures_of_the_card() -> None:
    figures = read_card(CARD.read_text())
    for page in PAGES:
        assert write_figures(page.read_text(), figures) == page.read_text(), "run scripts/still_life_figures.py"


def test_every_row_is_in_a_page_and_follows_the_card() -> None:
    figures = dict.fromkeys(read_card(CARD.read_text()), Figure("0.111", "22.2 %", "33.3 to 44.4", 55))
    pages = [write_figures(page.read_text(), figures) for page in PAGES]
    assert sum(len(re.findall(r"^\|.*11\.1 %.*\|$", page, re.MULTILINE)) for page in pages) == len(ROWS)
    assert "two things at their places in 6 of 55 held-out prompts" in pages[0]


def test_the_sheet_is_that_of_the_report() -> None:
    sheet = make_sheet([])
    assert read_sheet(f"<body>{sheet.to_html()}</body>") == sheet.png
    with pytest.raises(SystemExit) as raised:
        read_sheet("<body></body>")
    assert str(raised.value) == (
        "no sheet of still lifes in report.html; expected that of `calumma demo --size evening`."
    )


def test_the_program_changes_nothing_without_a_new_card() -> None:
    before = [page.read_bytes() for page in PAGES]
    subprocess.run([sys.executable, ROOT / "scripts" / "still_life_figures.py"], check=True)
    assert [page.read_bytes() for page in PAGES] == before


def test_examples_run() -> None:
    assert doctest.testmod(still_life_figures).failed == 0
