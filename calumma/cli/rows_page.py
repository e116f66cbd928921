"""A page of rows as a model is given them, decoded back to text and pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from calumma.batches.batch import NOBODY
from calumma.batches.stream import Stream
from calumma.demo.embed import escaped, picture
from calumma.shards.encode import Tokenizers
from calumma.tokens.sequence import split_ids

_HUES = (210, 35, 130, 330, 265, 175, 60, 0)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; }
section { border: 1px solid #bbb; border-radius: 6px; margin: 1rem 0; padding: .5rem; }
.owner { border-radius: 4px; padding: .1rem .3rem; white-space: pre-wrap; }
.empty { color: #777; } img { vertical-align: middle; margin: .15rem; }
"""


def rows_page(stream: Stream, tokenizers: Tokenizers, rows: int, title: str) -> str:
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
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escaped(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escaped(title)}</h1>"
        "<p>Each colour is an owner: a sequence that attends to itself alone. Hold the pointer "
        f"over it for its source and length.</p>{''.join(shown[:rows])}</html>\n"
    )


def _rows(stream: Stream, tokenizers: Tokenizers) -> Iterator[str]:
    planned = stream.planned()
    batch = stream.next()
    for row, owners in enumerate(planned):
        parts = []
        for owner, (draw, _) in enumerate(owners):
            places = np.flatnonzero(batch.owners[row] == owner)
            ids = [*batch.ids[row][places].tolist(), int(batch.targets[row][places[-1]])]
            told = f"{stream.reader.source(draw.number)}, {len(places)} ids"
            hue = _HUES[owner % len(_HUES)]
            parts.append(
                f'<span class="owner" title="{escaped(told)}" style="background: hsl({hue} 80% '
                f'90%)">{_decoded(ids, tokenizers)}</span> '
            )
        empty = int((batch.owners[row] == NOBODY).sum())
        rest = f'<span class="empty">{empty} empty</span>' if empty else ""
        yield f"<section>{''.join(parts)}{rest}</section>"


def _decoded(ids: list[int], tokenizers: Tokenizers) -> str:
    made = []
    for kind, run in split_ids(ids, tokenizers.text.vocabulary):
        if kind == "text":
            made.append(escaped(tokenizers.text.decode(run)))
        else:
            image = tokenizers.image.decode_image(run)
            made.append(picture(image, f"an image of {len(run)} codes", shown_side=64))
    return "".join(made)
