"""The road as a strip: a document, its codes, the reconstruction, a row of the batch."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from itertools import groupby

from calumma.demo.embed import escaped, picture
from calumma.demo.page_data import TokenCell, TokenizationExample

STEP_SIDE = 256
"""Pixels of the screen for each picture of the strip, so that cells and pixels lie alike."""

MAX_NUMBERED_CELLS = 10
"""Up to this many cells a side, each cell shows its code; in smaller ones it could not be read."""

_GOLDEN_ANGLE = 137.508
_SATURATION = 58
_LIGHTNESS = (52, 66, 40, 74, 46)


def code_color(code: int) -> str:
    """A colour for a code: neighbours in number are far apart in hue, and differ in lightness.

    >>> code_colour(0), code_colour(1)
    ('hsl(0 58% 52%)', 'hsl(138 58% 66%)')
    """
    hue, lightness = _hue_and_lightness(code)
    return f"hsl({hue} {_SATURATION}% {lightness}%)"


def _hue_and_lightness(code: int) -> tuple[int, int]:
    """Degrees, and per cent."""
    return round(code * _GOLDEN_ANGLE) % 360, _LIGHTNESS[code % len(_LIGHTNESS)]


def _is_dark(code: int) -> bool:
    """Whether white reads better on the code's colour than black."""
    hue, lightness = _hue_and_lightness(code)
    channels = colorsys.hls_to_rgb(hue / 360, lightness / 100, _SATURATION / 100)
    # Relative luminance with a plain square for the screen's curve; at 0.18 both read alike.
    luminance = sum(w * c * c for w, c in zip((0.21, 0.72, 0.07), channels, strict=True))
    return luminance < 0.18


def code_map(codes: Sequence[Sequence[int]]) -> str:
    """The codes of a picture as a grid of coloured cells, one `<svg>`; each cell says its code."""
    rows, columns = len(codes), max((len(row) for row in codes), default=0)
    if not columns:
        return ""
    side = 24
    cells = []
    for y, row in enumerate(codes):
        for x, code in enumerate(row):
            cells.append(
                f'<g><title>code {code}</title><rect x="{x * side}" y="{y * side}" '
                f'width="{side}" height="{side}" fill="{code_color(code)}"/>'
            )
            if columns <= MAX_NUMBERED_CELLS:
                ink = "#fff" if _is_dark(code) else "#111"
                cells.append(
                    f'<text x="{(x + 0.5) * side:g}" y="{(y + 0.64) * side:g}" '
                    f'fill="{ink}">{code}</text>'
                )
            cells.append("</g>")
    return (
        f'<svg class="codes" viewBox="0 0 {columns * side} {rows * side}" '
        f'width="{STEP_SIDE}" role="img" aria-label="{rows} by {columns} codes">'
        f"{''.join(cells)}</svg>"
    )


def packed_sequence_html(row: Sequence[TokenCell]) -> str:
    """The ids of a row as cells, in order, those of one owner together.

    Text and control tokens are written out; a code has its colour in the map of codes.
    """
    sequences = []
    for owner, cells in groupby(row, key=lambda cell: cell.document_id):
        sequences.append(
            f'<span class="sequence" data-owner="{owner}">{"".join(map(_cell, cells))}</span>'
        )
    return f'<div class="row">{" ".join(sequences)}</div>'


def _cell(cell: TokenCell) -> str:
    label = cell.label if cell.label.strip() else repr(cell.label)
    kind = "" if cell.label.startswith(cell.kind) else f"{cell.kind} "
    title = escaped(f"id {cell.token_id}: {kind}{label}")
    if cell.kind == "padding":
        return f'<i class="padding" title="{title}"></i>'
    if cell.kind == "code":
        code = re.search(r"\d+", cell.label)
        fill = f' style="background:{code_color(int(code.group()))}"' if code else ""
        return f'<i class="code" title="{title}"{fill}></i>'
    shown = cell.label.replace(" ", "\u00a0") or "\u00a0"
    return f'<i class="{cell.kind}" title="{title}">{escaped(shown)}</i>'


def tokenization_html(strip: TokenizationExample) -> str:
    """The whole strip: three stops with arrows between them, and the row below."""
    cells = sum(len(row) for row in strip.codes)
    stops = [
        (
            picture(strip.image, f"the picture of {strip.text}", STEP_SIDE),
            "a document",
            strip.text,
        ),
        (
            code_map(strip.codes),
            f"{cells} codes",
            f"one for each cell, out of a codebook of {strip.num_codes:,}",
        ),
        (
            picture(strip.reconstruction, f"{strip.text}, decoded from its codes", STEP_SIDE),
            "the reconstruction",
            "all that the codes remember",
        ),
    ]
    shown = [
        f"<figure>{drawn}<figcaption><b>{name}</b><span>{escaped(said)}</span></figcaption></figure>"
        for drawn, name, said in stops
    ]
    encoded, decoded = ('<span class="arrow">encoded</span>', '<span class="arrow">decoded</span>')
    stops_shown = f'<div class="stops">{shown[0]}{encoded}{shown[1]}{decoded}{shown[2]}</div>'
    intro = (
        "<p>A picture becomes a word for each of its cells. From there on pictures and text are "
        "one line of ids, and one decoder learns to go on with it.</p>"
    )
    return (
        intro + stops_shown + (_row_below(strip.packed_sequence) if strip.packed_sequence else "")
    )


def _row_below(row: Sequence[TokenCell]) -> str:
    """The row, under a line that says how to read it."""
    padded = any(cell.kind == "padding" for cell in row)
    padding = ', <i class="padding"></i> padding' if padded else ""
    return (
        f'<div class="below"><p class="kinds"><b>A row of the batch</b>, {len(row):,} ids: '
        '<i class="text">text</i>, <i class="code"></i> codes in the colours of the map, '
        f'<i class="control">control</i> tokens{padding}. A bar parts one document from the next, '
        "and none looks back over it. Point at a cell for its id.</p>"
        f"{packed_sequence_html(row)}</div>"
    )
