import re

import PIL.Image

from calumma.demo.page_data import TokenCell, TokenizationExample
from calumma.demo.tokenization_strip import (
    code_color,
    code_map,
    packed_sequence_html,
    tokenization_html,
)

GREY = PIL.Image.new("RGB", (8, 8), "grey")


def test_the_colours_of_all_small_codebooks_differ() -> None:
    assert len({code_color(code) for code in range(512)}) == 512


def test_the_map_lays_codes_row_by_row() -> None:
    drawn = code_map([[7, 0], [3, 3]])
    cells = re.findall(r"<title>code (\d+)</title><rect x=\"(\d+)\" y=\"(\d+)\"", drawn)
    assert cells == [("7", "0", "0"), ("0", "24", "0"), ("3", "0", "24"), ("3", "24", "24")]
    assert drawn.count(code_color(3)) == 2 and drawn.count("<text") == 4


def test_cells_of_a_large_map_have_no_number_on_them() -> None:
    drawn = code_map([[1] * 32] * 32)
    assert "<text" not in drawn and drawn.count("<title>code 1</title>") == 1024
    assert code_map([]) == ""


def test_a_row_keeps_the_order_and_parts_the_owners() -> None:
    row = [
        TokenCell(0, "control", "<s>", 0),
        TokenCell(90, "text", " fox", 0),
        TokenCell(11, "code", "code 7", 1),
        TokenCell(1, "padding", "<pad>", -1),
    ]
    drawn = packed_sequence_html(row)
    assert re.findall(r'data-owner="(-?\d+)"', drawn) == ["0", "1", "-1"]
    assert re.findall(r'title="([^"]+)"', drawn) == (
        [
            "id 0: control &lt;s&gt;",
            "id 90: text  fox",
            "id 11: code 7",
            "id 1: padding &lt;pad&gt;",
        ]
    )
    assert f"background:{code_color(7)}" in drawn and ">\u00a0fox</i>" in drawn


def test_text_that_cannot_be_seen_is_named() -> None:
    assert "text &#x27;\\n&#x27;" in packed_sequence_html([TokenCell(5, "text", "\n", 0)])


def test_the_strip_shows_all_its_stops_and_padding_only_where_there_is_some() -> None:
    text = TokenCell(9, "text", "fox", 0)
    bare = TokenizationExample("a fox", GREY, [[1, 2], [3, 4]], 16, GREY)
    assert tokenization_html(bare).count("<figure>") == 3
    assert "4 codes" in tokenization_html(bare) and "batch" not in tokenization_html(bare)
    full = tokenization_html(TokenizationExample("a fox", GREY, [[1]], 16, GREY, [text]))
    assert "A row of the batch" in full and "padding" not in full
