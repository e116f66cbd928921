"""The smallest pieces of a self-contained page: escaped text, embedded pictures, plain numbers."""

from __future__ import annotations

import html
import io

import PIL.Image

from calumma.documents.image_formats import data_url

MAX_SIDE = 256
"""Larger pictures are scaled down to this many pixels a side, to keep the page small."""

SHOWN_SIDE = 128
"""About how many pixels of the screen a picture is shown at, unless its place says otherwise."""


def escaped(text: str) -> str:
    """Text that is safe in an element and in a quoted attribute.

    >>> escaped('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(text, quote=True)


def picture(image: PIL.Image.Image, alt: str, shown_side: int = SHOWN_SIDE) -> str:
    """An `<img>` that carries its picture as PNG.

    Args:
        image: any mode; what is not RGB, RGBA or grey becomes RGB.
        alt: what the picture shows, for those who cannot see it.
        shown_side: expected size on the screen; the nearest whole multiple of the picture's width
            is taken, so that every pixel is shown as large as the others.
    """
    if image.mode not in {"RGB", "RGBA", "L"}:
        image = image.convert("RGB")
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    scale = max(1, round(shown_side / image.width))
    return (
        f'<img alt="{escaped(alt)}" width="{image.width * scale}" height="{image.height * scale}" '
        f'src="{data_url(file.getvalue())}">'
    )


def number(value: float) -> str:
    """A number as an axis shows it: no noughts at the end, thousands apart, a true minus.

    >>> number(0.25), number(3.0), number(12500), number(-0.5)
    ('0.25', '3', '12,500', '−0.5')
    """
    text = f"{value:,.4f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(8.34), duration(75), duration(3725)
    ('8.3 s', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
