"""Pictures for systems that write captions where they mean pictures.

Source: arXiv:2405.09818, section 4.1, the "+" baselines: every caption of an answer is replaced
by a picture that another model draws of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from calumma.documents.document import Document, Image, Part, Text

_CAPTION = re.compile(r"<caption>(.*?)</caption>", re.DOTALL | re.IGNORECASE)

GenerateImage = Callable[[str], Image | None]
"""A caption to its picture; None where none could be drawn."""


def captions_to_images(answer: Document, draw: GenerateImage) -> Document:
    """The answer with its captions drawn; a caption that could not be stays as it is written."""
    parts = [new for part in answer.parts() for new in _drawn(part, draw)]
    return replace(answer, content=tuple(parts), messages=())


def _drawn(part: Part, draw: GenerateImage) -> Iterator[Part]:
    if not isinstance(part, Text):
        yield part
        return
    end = 0
    for found in _CAPTION.finditer(part.text):
        picture = draw(found.group(1).strip())
        if picture is None:
            continue
        if before := part.text[end : found.start()].strip("\n"):
            yield Text(before)
        yield picture
        end = found.end()
    if rest := part.text[end:].strip("\n") if end else part.text:
        yield Text(rest)
