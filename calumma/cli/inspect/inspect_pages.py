"""Pages of `calumma inspect`: statistics and samples of documents and of token sequences, as HTML."""

import html
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from calumma.batches.batch import PADDING
from calumma.batches.loader import PackedLoader
from calumma.documents.column_account import ColumnAccount
from calumma.documents.document import ROLES, Document, Image, Part, Text
from calumma.errors import ImageError
from calumma.html_report import html_page, image_tag
from calumma.text_format import pluralize
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

NUM_DOCUMENTS = 20
"""Documents on a page."""

_MAX_CHARS = 2000
"""Characters of a text part that a page shows."""


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


@dataclass
class DocumentStats:
    """Counts over a stream of documents, with a uniform sample of them (reservoir sampling)."""

    sources: Counter[str] = field(default_factory=Counter)
    num_conversations: int = 0
    num_images: int = 0

    num_unreadable: int = 0
    """Images whose header cannot be read; images at URLs are not downloaded."""

    first_error: str = ""
    """The error of the first unreadable image."""

    account: ColumnAccount = field(default_factory=ColumnAccount)
    """What became of each column."""

    num_chars: int = 0
    samples: list[Document] = field(default_factory=list)

    def update(self, documents: Iterable[Document]) -> None:
        """Count documents; only the sample is held in memory."""
        generator = random.Random(0)
        for number, document in enumerate(documents):
            self.sources[document.source or "(no source)"] += 1
            self._count_images(document.images)
            self.account.update(document.account)
            self.num_chars += len(document.text)
            self.num_conversations += bool(document.messages)
            slot = number if number < NUM_DOCUMENTS else generator.randrange(number + 1)
            if slot < NUM_DOCUMENTS:
                self.samples[slot : slot + 1] = [document]

    def _count_images(self, images: Sequence[Image]) -> None:
        """Count images, and those whose file is missing or has no image header."""
        self.num_images += len(images)
        for image in images:
            try:
                image.require_header()
            except ImageError as error:
                self.num_unreadable += 1
                self.first_error = self.first_error or str(error)

    def lines(self) -> list[str]:
        """Return the counts as lines of text."""
        sources = ", ".join(f"{name} {count}" for name, count in self.sources.most_common(12))
        lines = [
            f"{pluralize(self.sources.total(), 'document')} ({pluralize(self.num_conversations, 'conversation')}), "
            f"{pluralize(self.num_images, 'image')}, {pluralize(self.num_chars, 'character')} of text",
            f"sources: {sources}",
            *self.account.lines(),
        ]
        if self.num_unreadable:
            unreadable = pluralize(self.num_unreadable, "image")
            lines.append(f"{unreadable} unreadable; the first: {self.first_error}")
        return lines


def documents_page(stats: DocumentStats, title: str) -> str:
    """Return the sampled documents as a self-contained HTML page."""
    note = (
        f"{pluralize(len(stats.samples), 'document')} sampled from {stats.sources.total():,}. "
        "In conversations, each role has a color."
    )
    return sections_page(title, note, map(_section, stats.samples))


def _section(document: Document) -> str:
    facts = [document.source or "no source", document.license or "no license"]
    facts += [f"{name}: {value}" for name, value in document.attributes.items()]
    head = f'<h2>{html.escape(document.id)}</h2><p class="empty">{html.escape("; ".join(facts))}</p>'
    if not document.messages:
        return head + _parts(document.content)
    turns = [highlighted(_parts(t.parts), ROLES.index(t.role), t.role) for t in document.messages]
    return head + "".join(f"<p>{turn}</p>" for turn in turns)


def _parts(parts: Iterable[Part]) -> str:
    return "".join(_part(part) for part in parts)


def _part(part: Part) -> str:
    if isinstance(part, Text):
        rest = len(part.text) - _MAX_CHARS
        more = f' <span class="empty">... {rest:,} more characters</span>' if rest > 0 else ""
        return f'<span class="span">{html.escape(part.text[:_MAX_CHARS])}</span>{more}'
    try:
        return image_tag(part.open(), "an image of the document", display_side=192)
    except ImageError as error:
        return f'<span class="empty">{html.escape(str(error))}</span>'
