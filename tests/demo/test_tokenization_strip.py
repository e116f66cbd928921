import re

import PIL.Image

from calumma.demo.page_data import TokenCell, TokenizationExample
from calumma.demo.tokenization_strip import code_color, code_map, packed_sequence_html, tokenization_html

GRAY = PIL.Image.new("RGB", (8, 8), "gray")


def test_the_colors_of_small_codebooks_differ() -> None:
    assert len({code_color(code) for code in range(512)}) == 512


def test_the_map_has_codes_row_by_row() -> None:
    svg = code_map([[7, 0], [3, 3]])
    cells = re.findall(r"<title>code (\d+)</title><rect x=\"(\d+)\" y=\"(\d+)\"", svg)
    assert cells == [("7", "0", "0"), ("0", "24", "0"), ("3", "0", "24"), ("3", "24", "24")]
    assert svg.count(code_color(3)) == 2 and svg.count("<text") == 4


def test_cells_of_a_large_map_have_no_number_on_them() -> None:
    svg = code_map([[1] * 32] * 32)
    assert "<text" not in svg and svg.count("<title>code 1</title>") == 1024
    assert code_map([]) == ""


def test_a_packed_sequence_is_grouped_by_document() -> None:
    row = [
        TokenCell(0, "control", "<s>", 0),
        TokenCell(90, "text", " fox", 0),
        TokenCell(11, "code", "7", 1),
        TokenCell(1, "padding", "<pad>", -1),
    ]
    svg = packed_sequence_html(row)
    assert re.findall(r'data-document="(-?\d+)"', svg) == ["0", "1", "-1"]
    assert re.findall(r'title="([^"]+)"', svg) == (
        ["token 0: control &lt;s&gt;", "token 90: text  fox", "token 11: code 7", "token 1: padding &lt;pad&gt;"]
    )
    assert f"background:{code_color(7)}" in svg and ">\u00a0fox</i>" in svg


def test_white_space_is_shown_in_the_tooltip() -> None:
    assert "text &#x27;\\n&#x27;" in packed_sequence_html([TokenCell(5, "text", "\n", 0)])


def test_the_strip_has_all_steps_and_padding_only_where_there_is_some() -> None:
    text = TokenCell(9, "text", "fox", 0)
    bare = TokenizationExample("a fox", GRAY, [[1, 2], [3, 4]], 16, GRAY)
    assert tokenization_html(bare).count("<figure>") == 3
    assert "4 codes" in tokenization_html(bare) and "packed" not in tokenization_html(bare)
    full = tokenization_html(TokenizationExample("a fox", GRAY, [[1]], 16, GRAY, [text]))
    assert "A packed sequence" in full and "padding" not in full
