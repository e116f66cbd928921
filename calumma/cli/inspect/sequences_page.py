"""An HTML page of packed training sequences, decoded to text and images."""

import html
from collections.abc import Iterable, Iterator

import numpy as np

from calumma.batches.batch import PADDING
from calumma.batches.loader import PackedLoader
from calumma.html_report import html_page, image_tag
from calumma.tokens.folder import Tokenizers
from calumma.tokens.sequence import split_modalities

_HUES = (210, 35, 130, 330, 265, 175, 60, 0)

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fff; color-scheme: light }
section { border: 1px solid #bbb; border-radius: 6px; margin: 1rem 0; padding: .5rem }
h2 { font-size: 1rem; margin: 0 0 .3rem }
.span { border-radius: 4px; padding: .1rem .3rem; white-space: pre-wrap }
.empty { color: #777 } img { vertical-align: middle; margin: .15rem; max-width: 100% }
"""


def sequences_page(loader: PackedLoader, tokenizers: Tokenizers, num_sequences: int, title: str) -> str:
    """Return the next packed sequences of a loader as a self-contained HTML page.

    Args:
        loader: the data loader.
        tokenizers: the tokenizers that the shards were built with.
        num_sequences: packed sequences to show.
        title: the title of the page.
    """
    sections: list[str] = []
    while len(sections) < num_sequences:
        sections += _sequences_html(loader, tokenizers)
    note = (
        "Each color is one document of a packed sequence; tokens attend only within their "
        "document. Hover over a document for its source and length."
    )
    return sections_page(title, note, sections[:num_sequences])


def _sequences_html(loader: PackedLoader, tokenizers: Tokenizers) -> Iterator[str]:
    planned = loader.plan_rows()
    batch = loader.next()
    for row, documents in enumerate(planned):
        spans = []
        for document_id, (draw, _) in enumerate(documents):
            positions = np.flatnonzero(batch.document_ids[row] == document_id)
            token_ids = batch.input_ids[row][positions].tolist()
            token_ids.append(int(batch.labels[row][positions[-1]]))
            tooltip = f"{loader.reader.source_of(draw.sequence)}, {len(positions)} tokens"
            spans.append(highlighted(_decode(token_ids, tokenizers), document_id, tooltip))
        num_padding = int((batch.document_ids[row] == PADDING).sum())
        padding = f'<span class="empty">{num_padding} padding</span>' if num_padding else ""
        yield f"{''.join(spans)}{padding}"


def _decode(token_ids: list[int], tokenizers: Tokenizers) -> str:
    parts = []
    for kind, run in split_modalities(token_ids, tokenizers.text.vocabulary):
        if kind == "text":
            parts.append(html.escape(tokenizers.text.decode(run)))
        else:
            image = tokenizers.image.decode_image(run)
            parts.append(image_tag(image, f"an image of {len(run)} codes", display_side=64))
    return "".join(parts)


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
