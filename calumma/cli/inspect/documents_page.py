"""A page of documents drawn from all that a path holds: text and pictures in reading order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from calumma.cli.inspect.inspect_html import coloured, page
from calumma.demo.embed import escaped, picture
from calumma.documents.document import ROLES, Document, Image, Part, Text
from calumma.errors import ImageError
from calumma.text_format import pluralize

SHOWN = 20
"""Documents on a page."""

_LETTERS = 2000
"""Of a part of text, at most."""


@dataclass
class Survey:
    """Counts over documents, and a few of them drawn as they go by, each as likely as any other."""

    sources: Counter[str] = field(default_factory=Counter)
    conversations: int = 0
    images: int = 0

    unopened: int = 0
    """Of the images; headers alone are read, and no picture at an address is fetched."""

    fault: str = ""
    """Why the first of them cannot be opened."""

    letters: int = 0
    drawn: list[Document] = field(default_factory=list)

    def take(self, documents: Iterable[Document]) -> None:
        """Count documents, holding those drawn and no others in memory."""
        # Drawn as if by lot, and yet the same ones whenever the same documents are looked at.
        lots = random.Random(0)
        for number, document in enumerate(documents):
            self.sources[document.source or "(no source)"] += 1
            self._look(document.images)
            self.letters += len(document.text)
            self.conversations += bool(document.messages)
            place = number if number < SHOWN else lots.randrange(number + 1)
            if place < SHOWN:
                self.drawn[place : place + 1] = [document]

    def _look(self, images: Sequence[Image]) -> None:
        """Count pictures, and those whose file is missing or does not begin as a picture does."""
        self.images += len(images)
        for image in images:
            try:
                image.require_header()
            except ImageError as error:
                self.unopened += 1
                self.fault = self.fault or str(error)

    def lines(self) -> list[str]:
        """The counts, told in lines."""
        sources = ", ".join(f"{name} {count}" for name, count in self.sources.most_common(12))
        return [
            f"{pluralize(self.sources.total(), 'document')} "
            f"({pluralize(self.conversations, 'conversation')}), {pluralize(self.images, 'image')}, "
            f"{pluralize(self.letters, 'letter')} of text",
            f"sources: {sources}",
            *(
                [f"{pluralize(self.unopened, 'image')} not opened; the first: {self.fault}"]
                if self.unopened
                else []
            ),
        ]


def documents_page(found: Survey, title: str) -> str:
    """The documents drawn, as an HTML page that needs no other file."""
    note = (
        f"{pluralize(len(found.drawn), 'document')} drawn from {found.sources.total():,}. "
        "In conversations, each role has a colour."
    )
    return page(title, note, map(_section, found.drawn))


def _section(document: Document) -> str:
    known = [document.source or "no source", document.license or "no licence"]
    known += [f"{name}: {value}" for name, value in document.attributes.items()]
    head = f'<h2>{escaped(document.id)}</h2><p class="empty">{escaped("; ".join(known))}</p>'
    if not document.messages:
        return head + _shown(document.content)
    turns = [coloured(_shown(t.parts), ROLES.index(t.role), t.role) for t in document.messages]
    return head + "".join(f"<p>{turn}</p>" for turn in turns)


def _shown(parts: Iterable[Part]) -> str:
    return "".join(_part(part) for part in parts)


def _part(part: Part) -> str:
    if isinstance(part, Text):
        rest = len(part.text) - _LETTERS
        more = f' <span class="empty">... {rest:,} letters more</span>' if rest > 0 else ""
        return f'<span class="owner">{escaped(part.text[:_LETTERS])}</span>{more}'
    try:
        return picture(part.open(), "a picture of the document", shown_side=192)
    except ImageError as error:
        return f'<span class="empty">{escaped(str(error))}</span>'
