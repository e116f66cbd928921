"""Pictures composed on plain grounds, with captions whose truth is known.

An object (a shape that is drawn here, or a transparent picture such as an emoji) stands on a
ground of one of eight colours. The caption says all that was chosen: size, colour of a shape,
what it is, colour of the ground. Everything follows from the scene, so the same scene is the
same picture.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import PIL.Image
import PIL.ImageDraw

from calumma.documents.document import Document, Image, Text

GROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 30),
    "yellow": (250, 218, 60),
    "green": (60, 165, 80),
    "blue": (60, 110, 215),
    "purple": (135, 75, 185),
    "black": (30, 30, 34),
    "white": (250, 250, 250),
}
"""The eight colours of grounds and shapes, in red, green and blue from 0 to 255. Each is well
inside the borders of its word in `colours.py`."""

SHAPES = ("circle", "square", "triangle", "ring", "cross", "diamond")
SIZES = {"large": 0.875, "small": 0.625}
"""Side of the object's box as a share of the picture's: told apart at a glance, and the small one
still large enough to be recognised at 32 pixels."""

_OVERSAMPLING = 4
"""Shapes are drawn this much larger and scaled down, for smooth edges."""


@dataclass(frozen=True)
class Scene:
    """All that decides a composed picture."""

    thing: str
    """A shape's name, or an object's."""

    size: str
    ground: str
    color: str = ""
    """Of a shape; empty for objects, which have their own."""

    @property
    def caption(self) -> str:
        """What the picture shows, in words."""
        thing = f"{self.color} {self.thing}" if self.color else self.thing
        return f"a {self.size} {thing} on {indefinite_article(self.ground)} {self.ground} ground"

    @property
    def attributes(self) -> dict[str, str]:
        """The truths a measurement can be held against."""
        known = {"thing": self.thing, "size": self.size, "ground": self.ground}
        return known | {"colour": self.color} if self.color else known


def indefinite_article(word: str) -> str:
    """The indefinite article before a word.

    >>> article("orange"), article("blue")
    ('an', 'a')
    """
    return "an" if word[0] in "aeiou" else "a"


def shape_scenes() -> Iterator[Scene]:
    """Every shape, size, colour and ground, where colour and ground differ."""
    for shape, size, colour, ground in product(SHAPES, SIZES, GROUNDS, GROUNDS):
        if colour != ground:
            yield Scene(shape, size, ground, colour)


def object_scenes(names: Iterator[str] | list[str]) -> Iterator[Scene]:
    """Every object, size and ground."""
    for name, size, ground in product(names, SIZES, GROUNDS):
        yield Scene(name, size, ground)


def draw_scene(
    scene: Scene,
    objects: Mapping[str, PIL.Image.Image],
    side: int,
    shift: tuple[int, int] = (0, 0),
) -> PIL.Image.Image:
    """Draw a scene.

    Args:
        scene: what to draw.
        objects: transparent square pictures by name; shapes need none.
        side: pixels to a side.
        shift: pixels by which the thing stands right of the middle, and below it.

    Returns:
        An RGB picture.
    """
    image = PIL.Image.new("RGB", (side, side), GROUNDS[scene.ground])
    box = round(side * SIZES[scene.size])
    if scene.color:
        drawn = draw_shape(scene.thing, GROUNDS[scene.color], box)
    else:
        drawn = objects[scene.thing].resize((box, box), PIL.Image.Resampling.LANCZOS)
    start = (side - box) // 2
    image.paste(drawn, (start + shift[0], start + shift[1]), drawn)
    return image


def draw_shape(name: str, color: tuple[int, int, int], box: int) -> PIL.Image.Image:
    """One of `SHAPES` in a colour, `box` pixels to a side, on nothing."""
    size = box * _OVERSAMPLING
    drawn = PIL.Image.new("RGBA", (size, size), (*color, 0))
    pen = PIL.ImageDraw.Draw(drawn)
    edge, full = size - 1, (*color, 255)
    third = size // 3
    if name == "circle":
        pen.ellipse((0, 0, edge, edge), fill=full)
    elif name == "square":
        pen.rectangle((0, 0, edge, edge), fill=full)
    elif name == "triangle":
        pen.polygon([(edge / 2, 0), (edge, edge), (0, edge)], fill=full)
    elif name == "diamond":
        pen.polygon([(edge / 2, 0), (edge, edge / 2), (edge / 2, edge), (0, edge / 2)], fill=full)
    elif name == "ring":
        pen.ellipse((0, 0, edge, edge), fill=full)
        hole = size // 4
        pen.ellipse((hole, hole, edge - hole, edge - hole), fill=(*color, 0))
    else:
        assert name == "cross", name
        pen.rectangle((third, 0, edge - third, edge), fill=full)
        pen.rectangle((0, third, edge, edge - third), fill=full)
    return drawn.resize((box, box), PIL.Image.Resampling.LANCZOS)


def encode_fast_png(image: PIL.Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=False, compress_level=1)
    return file.getvalue()


def scene_document(scene: Scene, source: str, image: Image) -> Document:
    """A scene as a document: its caption, then a picture of it."""
    return Document(
        id=f"{source}/{scene.caption}",
        source=source,
        content=(Text(scene.caption), image),
        attributes=scene.attributes,
    )
