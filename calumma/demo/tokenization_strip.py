"""The tokenization of a document as HTML: image, codes, reconstruction, packed sequence."""

import colorsys
from collections.abc import Sequence
from html import escape
from itertools import groupby

from calumma.demo.page_data import TokenCell, TokenizationExample
from calumma.html_report import image_tag

_SIDE = 256
"""Display size of image, codes and reconstruction in pixels, so that cells and pixels align."""

_MAX_NUMBERED_CELLS = 10
"""Cells per side up to which each cell shows its code; in smaller cells it is not readable."""

_GOLDEN_ANGLE = 137.508
_SATURATION = 58
_LIGHTNESS = (52, 66, 40, 74, 46)


def code_color(code: int) -> str:
    """Return a color for a code; consecutive codes differ in hue and lightness.

    >>> code_color(0), code_color(1)
    ('hsl(0 58% 52%)', 'hsl(138 58% 66%)')
    """
    hue, lightness = _hue_and_lightness(code)
    return f"hsl({hue} {_SATURATION}% {lightness}%)"


def _hue_and_lightness(code: int) -> tuple[int, int]:
    """Return degrees and percent."""
    return round(code * _GOLDEN_ANGLE) % 360, _LIGHTNESS[code % len(_LIGHTNESS)]


def _is_dark(code: int) -> bool:
    """Return whether white has more contrast to the code's color than black."""
    hue, lightness = _hue_and_lightness(code)
    channels = colorsys.hls_to_rgb(hue / 360, lightness / 100, _SATURATION / 100)
    # Relative luminance with gamma 2; at 0.18 both have the same contrast.
    luminance = sum(w * c * c for w, c in zip((0.21, 0.72, 0.07), channels, strict=True))
    return luminance < 0.18


def code_map(codes: Sequence[Sequence[int]]) -> str:
    """Return an image's codes as an SVG grid of colored cells, with codes as tooltips."""
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
            if columns <= _MAX_NUMBERED_CELLS:
                ink = "#fff" if _is_dark(code) else "#111"
                cells.append(f'<text x="{(x + 0.5) * side:g}" y="{(y + 0.64) * side:g}" fill="{ink}">{code}</text>')
            cells.append("</g>")
    return (
        f'<svg class="codes" viewBox="0 0 {columns * side} {rows * side}" '
        f'width="{_SIDE}" role="img" aria-label="{rows} by {columns} codes">'
        f"{''.join(cells)}</svg>"
    )


def packed_sequence_html(cells: Sequence[TokenCell]) -> str:
    """Return the tokens of a packed sequence as cells, grouped by document."""
    documents = [
        f'<span class="sequence" data-document="{document}">{"".join(map(_cell, group))}</span>'
        for document, group in groupby(cells, key=lambda cell: cell.document_id)
    ]
    return f'<div class="row">{" ".join(documents)}</div>'


def _cell(cell: TokenCell) -> str:
    label = cell.label if cell.label.strip() else repr(cell.label)
    kind = "" if cell.label.startswith(cell.kind) else f"{cell.kind} "
    title = escape(f"token {cell.token_id}: {kind}{label}")
    if cell.kind == "padding":
        return f'<i class="padding" title="{title}"></i>'
    if cell.kind == "code":
        color = code_color(int(cell.label))
        return f'<i class="code" title="{title}" style="background:{color}"></i>'
    text = cell.label.replace(" ", "\u00a0") or "\u00a0"
    return f'<i class="{cell.kind}" title="{title}">{escape(text)}</i>'


def tokenization_html(example: TokenizationExample) -> str:
    """Return the complete strip: image, codes and reconstruction, then the packed sequence."""
    cells = sum(len(row) for row in example.codes)
    reconstruction = image_tag(example.reconstruction, f"{example.text}, decoded from its codes", _SIDE)
    steps = [
        (image_tag(example.image, f"image of {example.text}", _SIDE), "document", example.text),
        (code_map(example.codes), f"{cells} codes", f"one per cell, from a codebook of {example.num_codes:,}"),
        (reconstruction, "reconstruction", "decoded from the codes"),
    ]
    figures = [
        f"<figure>{image}<figcaption><b>{name}</b><span>{escape(text)}</span></figcaption></figure>"
        for image, name, text in steps
    ]
    encode, decode = ('<span class="arrow">encode</span>', '<span class="arrow">decode</span>')
    intro = (
        "<p>The image tokenizer encodes an image as one code per cell. Image codes and text tokens "
        "form one token sequence, on which one decoder is trained.</p>"
    )
    strip = f'<div class="steps">{figures[0]}{encode}{figures[1]}{decode}{figures[2]}</div>'
    return intro + strip + (_packed(example.packed_sequence) if example.packed_sequence else "")


def _packed(cells: Sequence[TokenCell]) -> str:
    """Return a packed sequence with its legend."""
    padding = ""
    if any(cell.kind == "padding" for cell in cells):
        padding = ', <i class="padding"></i> padding'
    return (
        f'<div class="packed"><p class="kinds"><b>A packed sequence</b> of {len(cells):,} tokens: '
        '<i class="text">text</i>, <i class="code"></i> codes in the colors of the grid, '
        f'<i class="control">control</i> tokens{padding}. Bars separate documents; attention does '
        f"not cross them. Hover over a cell for its token id.</p>{packed_sequence_html(cells)}</div>"
    )
