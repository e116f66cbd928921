"""Self-contained HTML pages: no network, images embedded as PNG."""

import base64
import hashlib
import html
import io

import PIL.Image

MAX_IMAGE_SIDE = 256
"""Larger images are downscaled to this many pixels per side, to keep the page small."""

IMAGE_DISPLAY_SIDE = 128
"""Default size of an image on the screen, in pixels."""

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'{script_policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
{body}
{script}</html>
"""

REPORT_STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem }
table { border-collapse: collapse }
th, td { padding: .4rem .6rem; text-align: left; vertical-align: top;
  font-variant-numeric: tabular-nums }
tr { border-bottom: 1px solid #8883 }
small { display: block; font-weight: normal; color: #666 }
.scroll { overflow-x: auto }
img { max-width: 100% }
code, pre { font-size: .85em; background: #8881; overflow-wrap: anywhere; white-space: pre-wrap }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 }
  small { color: #999 } }
"""
"""Style sheet of a plain report."""

CHART_STYLE = """\
.chart { margin: 0; min-width: 0 }
.chart figcaption { font-weight: 600 }
.chart figcaption small { font-weight: normal; display: inline }
.chart p { margin: 0; color: #666 }
.chart svg { width: 100%; height: auto; display: block; font: 10.5px system-ui, sans-serif }
.chart text { fill: #666 }
.grid { stroke: #8886; stroke-width: .8 } .mark { stroke: #c22; stroke-width: 1; stroke-dasharray: 3 3 }
@media (max-width: 30rem) { .chart svg { font-size: 14px } }
.name { font-size: .8rem; margin-right: .6rem; display: inline-block }
.bar { display: block; border-radius: 4px; background: #8882 }
.limit { stroke: #c22; stroke-width: 3 }
.interval { stroke: #2563eb; stroke-width: 4; opacity: .5 }
.baseline { stroke: #d97706; stroke-width: 2 }
.value { fill: #2563eb }
@media (prefers-color-scheme: dark) { .chart text, .chart p { fill: #aaa; color: #aaa } }
"""
"""Style sheet of the charts of calumma/charts.py."""


def html_page(title: str, body: str, *, style: str = REPORT_STYLE, script: str = "") -> str:
    """Return a page that loads nothing; a content security policy enforces it.

    Args:
        title: plain text.
        body: HTML.
        style: style sheet.
        script: JavaScript, the only one that the policy allows; most pages need none.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _PAGE.format(
        title=html.escape(title),
        style=style,
        body=body,
        script=f"<script>{script}</script>\n" if script else "",
        script_policy=f"; script-src 'sha256-{digest}'" if script else "",
    )


def scroll_region(content: str, label: str, css_class: str = "scroll") -> str:
    """Return HTML that scrolls sideways where it is wider than the page, also by keyboard; label is its name."""
    return f'<div class="{css_class}" role="region" aria-label="{html.escape(label)}" tabindex="0">{content}</div>'


def image_tag(image: PIL.Image.Image, alt: str, display_side: int = IMAGE_DISPLAY_SIDE) -> str:
    """Return an `<img>` with the embedded image.

    Args:
        image: any mode; modes other than RGB, RGBA and L are converted to RGB.
        alt: alternative text.
        display_side: size on the screen; the nearest integer multiple of the image's width is
            used, so that all pixels are equally large.
    """
    if image.mode not in {"RGB", "RGBA", "L"}:
        image = image.convert("RGB")
    if max(image.size) > MAX_IMAGE_SIDE:
        image = image.copy()
        image.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    scale = max(1, round(display_side / image.width))
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    size = f'width="{image.width * scale}" height="{image.height * scale}"'
    return f'<img alt="{html.escape(alt)}" {size} src="{url}">'
