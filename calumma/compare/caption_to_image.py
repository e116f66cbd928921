"""Replace captions by generated images, for systems that write text only.

Source: arXiv:2405.09818, section 4.1, the "+" baselines: every caption of an answer is replaced by
an image that another model generates for it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from calumma.documents.document import Document, Image, Part, Text

_CAPTION = re.compile(r"<caption>(.*?)</caption>", re.DOTALL | re.IGNORECASE)

GenerateImage = Callable[[str], Image | None]
"""Maps a caption to an image; None where none could be generated."""


def captions_to_images(answer: Document, generate: GenerateImage) -> Document:
    """Return the answer with captions replaced by images; a caption without an image is kept."""
    parts = [new for part in answer.parts() for new in _replace_captions(part, generate)]
    return replace(answer, content=tuple(parts), messages=())


def _replace_captions(part: Part, generate: GenerateImage) -> Iterator[Part]:
    if not isinstance(part, Text):
        yield part
        return
    end = 0
    for match in _CAPTION.finditer(part.text):
        image = generate(match.group(1).strip())
        if image is None:
            continue
        if before := part.text[end : match.start()].strip("\n"):
            yield Text(before)
        yield image
        end = match.end()
    if rest := part.text[end:].strip("\n") if end else part.text:
        yield Text(rest)
