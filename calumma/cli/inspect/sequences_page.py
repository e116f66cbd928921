"""An HTML page of packed training sequences, decoded to text and images."""

import html
from collections.abc import Iterator

import numpy as np

from calumma.batches.batch import PADDING
from calumma.batches.loader import PackedLoader
from calumma.cli.inspect.inspect_html import highlighted, sections_page
from calumma.html_report import image_tag
from calumma.tokens.folder import Tokenizers
from calumma.tokens.sequence import split_modalities


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
