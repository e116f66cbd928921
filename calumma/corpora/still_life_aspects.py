"""Still lifes on wide, tall and square images, whose texts name the aspect.

The scene is the square in the middle; its background fills the rest. Only texts before the first
image of an answer change, so questions, answers and edits stay true.
"""

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import PIL.Image

from calumma.corpora.synthetic_scenes import GROUNDS, encode_fast_png
from calumma.documents.document import Document, Image, Part, Text, Turn

ASPECTS: dict[str, tuple[float, float]] = {"square": (1.0, 1.0), "wide": (1.5, 1.0), "tall": (1.0, 1.5)}
"""Width and height of each aspect, in sides of the scene."""

_UNNAMED_SQUARES = 0.5
"""Share of the square images whose text does not name the aspect."""


def with_aspect(document: Document, kind: str, aspects: Sequence[str], random: np.random.Generator) -> Document:
    """Return a document of still lifes with its images in one of the aspects, sampled uniformly.

    Args:
        document: of `StillLifeWriter`.
        kind: of the document; pairs, drawings, chats and stories name the aspect.
        aspects: of `ASPECTS`.
        random: decides the aspect.
    """
    aspect = aspects[int(random.integers(len(aspects)))]
    words = "" if aspect == "square" and random.random() < _UNNAMED_SQUARES else aspect_words(kind, aspect)
    named = [not words]

    def change(parts: tuple[Part, ...]) -> tuple[Part, ...]:
        changed: list[Part] = []
        for part in parts:
            if isinstance(part, Image):
                changed.append(widen(part, aspect))
            elif isinstance(part, Text) and not named[0]:
                named[0] = True
                changed.append(replace(part, text=part.text + words))
            else:
                changed.append(part)
        return tuple(changed)

    messages = tuple(Turn(turn.role, change(turn.parts)) for turn in document.messages)
    attributes = {**document.attributes, "aspect": aspect}
    return replace(document, content=change(document.content), messages=messages, attributes=attributes)


def aspect_words(kind: str, aspect: str) -> str:
    """Return the words that name an aspect after the first text of a kind of document; none for some."""
    if kind == "pairs":
        return f", in a {aspect} picture"
    if kind in ("draw", "chat"):
        return f" Make the picture {aspect}."
    return f" The pictures are {aspect}." if kind == "stories" else ""


def widen(image: Image, aspect: str) -> Image:
    """Return a square image in the middle of one of an aspect, filled with its background."""
    width, height = ASPECTS[aspect]
    scene = PIL.Image.open(io.BytesIO(image.read_bytes())).convert("RGB")
    size = round(width * scene.width), round(height * scene.height)
    # The edge of a large thing may reach the corner.
    corner = np.asarray(scene)[0, 0].astype(int)
    background = min(GROUNDS.values(), key=lambda color: int(np.square(corner - color).sum()))
    canvas = PIL.Image.new("RGB", size, background)
    canvas.paste(scene, ((size[0] - scene.width) // 2, (size[1] - scene.height) // 2))
    return Image(data=encode_fast_png(canvas), name=image.name)
