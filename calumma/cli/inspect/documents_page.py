"""Statistics over documents, and an HTML page of a random sample of them."""

import html
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from calumma.cli.inspect.sequences_page import highlighted, sections_page
from calumma.documents.column_account import ColumnAccount
from calumma.documents.document import ROLES, Document, Image, Part, Text
from calumma.errors import ImageError
from calumma.html_report import image_tag
from calumma.text_format import pluralize

NUM_DOCUMENTS = 20
"""Documents on a page."""

_MAX_CHARS = 2000
"""Characters of a text part that a page shows."""


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
