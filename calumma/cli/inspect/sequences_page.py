"""A page of rows as a model is given them, decoded back to text and pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from calumma.batches.batch import PADDING
from calumma.batches.loader import PackedLoader
from calumma.cli.inspect.inspect_html import coloured, page
from calumma.demo.embed import escaped, picture
from calumma.tokens.folder import Tokenizers
from calumma.tokens.sequence import split_modalities


def rows_page(stream: PackedLoader, tokenizers: Tokenizers, rows: int, title: str) -> str:
    """The next rows of a stream as an HTML page that needs no other file.

    Args:
        stream: where to draw from.
        tokenizers: those that the shards were made with.
        rows: how many to show.
        title: of the page.
    """
    shown: list[str] = []
    while len(shown) < rows:
        shown += _rows(stream, tokenizers)
    note = (
        "Each colour is an owner: a sequence that attends to itself alone. Hold the pointer over "
        "it for its source and length."
    )
    return page(title, note, shown[:rows])


def _rows(stream: PackedLoader, tokenizers: Tokenizers) -> Iterator[str]:
    planned = stream.plan_rows()
    batch = stream.next()
    for row, owners in enumerate(planned):
        parts = []
        for owner, (draw, _) in enumerate(owners):
            places = np.flatnonzero(batch.document_ids[row] == owner)
            ids = [*batch.input_ids[row][places].tolist(), int(batch.labels[row][places[-1]])]
            told = f"{stream.reader.source_of(draw.sequence)}, {len(places)} ids"
            parts.append(coloured(_decoded(ids, tokenizers), owner, told))
        empty = int((batch.document_ids[row] == PADDING).sum())
        rest = f'<span class="empty">{empty} empty</span>' if empty else ""
        yield f"{''.join(parts)}{rest}"


def _decoded(ids: list[int], tokenizers: Tokenizers) -> str:
    made = []
    for kind, run in split_modalities(ids, tokenizers.text.vocabulary):
        if kind == "text":
            made.append(escaped(tokenizers.text.decode(run)))
        else:
            image = tokenizers.image.decode_image(run)
            made.append(picture(image, f"an image of {len(run)} codes", shown_side=64))
    return "".join(made)
