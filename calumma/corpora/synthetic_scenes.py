"""Synthetic scenes: one object on a ground, with a caption that is true by construction.

The object is a shape that is drawn here, or a transparent image such as an emoji; the ground has
one of eight colors. The caption states everything that was sampled: the size, the color of a shape,
the object, the color of the ground. The same scene always gives the same image.
"""

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
"""The eight RGB colors of grounds and shapes, 0 to 255."""

SHAPES = ("circle", "square", "triangle", "ring", "cross", "diamond")
SIZES = {"large": 0.875, "small": 0.625}
"""Side of the object's box as a fraction of the image side: easy to distinguish, and the small one
large enough to recognize at 32 pixels."""

_OVERSAMPLING = 4
"""Factor by which shapes are drawn larger before they are scaled down, for smooth edges."""


@dataclass(frozen=True)
class Scene:
    """A complete description of one image."""

    thing: str
    """Name of the shape or object."""

    size: str
    ground: str
    color: str = ""
    """Color of a shape; empty for objects."""

    @property
    def caption(self) -> str:
        """The caption of the image."""
        thing = f"{self.color} {self.thing}" if self.color else self.thing
        return f"a {self.size} {thing} on {indefinite_article(self.ground)} {self.ground} ground"

    @property
    def attributes(self) -> dict[str, str]:
        """Document attributes, as ground truth for evaluation."""
        known = {"thing": self.thing, "size": self.size, "ground": self.ground}
        return known | {"colour": self.color} if self.color else known


def indefinite_article(word: str) -> str:
    """Return the indefinite article of a word.

    >>> indefinite_article("orange"), indefinite_article("blue")
    ('an', 'a')
    """
    return "an" if word[0] in "aeiou" else "a"


def shape_scenes() -> Iterator[Scene]:
    """Yield every combination of shape, size, color and ground with two different colors."""
    for shape, size, color, ground in product(SHAPES, SIZES, GROUNDS, GROUNDS):
        if color != ground:
            yield Scene(shape, size, ground, color)


def object_scenes(names: Iterator[str] | list[str]) -> Iterator[Scene]:
    """Yield every combination of object, size and ground."""
    for name, size, ground in product(names, SIZES, GROUNDS):
        yield Scene(name, size, ground)


def draw_scene(
    scene: Scene, objects: Mapping[str, PIL.Image.Image], side: int, shift: tuple[int, int] = (0, 0)
) -> PIL.Image.Image:
    """Draw a scene.

    Args:
        scene: the scene.
        objects: transparent square images by name; not needed for shapes.
        side: side of the image in pixels.
        shift: offset of the object from the center in pixels, to the right and down.

    Returns:
        An RGB image.
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
    """Draw one of `SHAPES` as a transparent RGBA image of `box` x `box` pixels."""
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
    """Encode an image as PNG with the fastest compression."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=False, compress_level=1)
    return file.getvalue()


def scene_document(scene: Scene, source: str, image: Image) -> Document:
    """Build the document of a scene: its caption, then its image."""
    return Document(
        id=f"{source}/{scene.caption}",
        source=source,
        content=(Text(scene.caption), image),
        attributes=scene.attributes,
    )
