"""HTML of the pages that `calumma inspect` writes: sections of highlighted spans in one file."""

import html
from collections.abc import Iterable

from calumma.html_report import html_page

_HUES = (210, 35, 130, 330, 265, 175, 60, 0)

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fff; color-scheme: light }
section { border: 1px solid #bbb; border-radius: 6px; margin: 1rem 0; padding: .5rem }
h2 { font-size: 1rem; margin: 0 0 .3rem }
.span { border-radius: 4px; padding: .1rem .3rem; white-space: pre-wrap }
.empty { color: #777 } img { vertical-align: middle; margin: .15rem; max-width: 100% }
"""


def sections_page(title: str, note: str, sections: Iterable[str]) -> str:
    """Return a self-contained HTML page.

    Args:
        title: the title and heading.
        note: a sentence on how to read the page.
        sections: HTML of each section.
    """
    body = "".join(f"<section>{section}</section>" for section in sections)
    heading = f"<h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>"
    return html_page(title, f"{heading}{body}", style=_STYLE)


def highlighted(content: str, number: int, tooltip: str) -> str:
    """Return HTML `content` on the background color of `number`, with a tooltip."""
    hue = _HUES[number % len(_HUES)]
    return (
        f'<span class="span" title="{html.escape(tooltip)}" style="background: hsl({hue} 80% 90%)">{content}</span> '
    )
