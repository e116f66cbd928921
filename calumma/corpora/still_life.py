"""Still lifes: things of the embedded corpus and plain shapes, set out on a ground.

A still life is decided by a random generator and holds all that can be said of it, so captions,
questions and their answers are true by construction. Things stand where words can name: one in the
middle, two side by side or one above the other, three or four in the corners.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import PIL.Image

from calumma.corpora.captions import Split
from calumma.corpora.embedded import EmbeddedKind, load_embedded
from calumma.corpora.synthetic_scenes import GROUNDS, SHAPES, draw_shape
from calumma.documents.document import Document

GROUND_PATTERNS = ("plain", "striped", "checked", "fading")
"""Grounds: one colour, bands or squares of two, or one that fades into the other downwards."""

LAYOUTS: dict[str, tuple[tuple[str, float, float], ...]] = {
    "one": (("in the middle", 0.5, 0.5),),
    "row": (("on the left", 0.27, 0.5), ("on the right", 0.73, 0.5)),
    "column": (("at the top", 0.5, 0.27), ("at the bottom", 0.5, 0.73)),
    "corners": (
        ("at the top left", 0.27, 0.27),
        ("at the top right", 0.73, 0.27),
        ("at the bottom left", 0.27, 0.73),
        ("at the bottom right", 0.73, 0.73),
    ),
}
"""Places by name, each with the share of the picture's side right of its left and below its top."""

SINGLE_BOX, SHARED_BOX = 0.75, 0.42
"""Side of a thing's box as a share of the picture's."""

_CATEGORIES = {
    *("animals-nature", "food-drink", "travel-places", "objects", "activities"),
    *("animals", "food", "transportation", "tools", "plants", "recreation", "buildings"),
}
_NAME = re.compile(r"[a-z]+(?:[ -][a-z]+){0,2}")
_JPEG = {"quality": 90, "subsampling": 0}


@dataclass(frozen=True)
class Thing:
    """Something that can stand in a picture: a coloured shape, or a picture of its own."""

    name: str
    """With its colour, where it is a shape."""

    color: str = ""
    """Of a shape; empty for what has its own colours."""

    source: str = "shapes"
    license: str = "CC0-1.0"
    split: Split = "train"
    data: bytes = b""
    """The file of its picture; empty for shapes."""

    def render(self, box: int) -> PIL.Image.Image:
        """The thing, transparent around it, with its longer side as long as the box's."""
        if self.color:
            return draw_shape(self.name.split()[-1], GROUNDS[self.color], box)
        with PIL.Image.open(io.BytesIO(self.data)) as file:
            picture = file.convert("RGBA")
        scale = box / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, PIL.Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Ground:
    """What the things stand on."""

    pattern: str
    color: str
    second_color: str = ""
    """The other colour; empty on a plain ground."""

    @property
    def description(self) -> str:
        """The ground, named."""
        colours = f"{self.color} and {self.second_color}" if self.second_color else self.color
        return f"{self.pattern} {colours} ground"

    @property
    def colors(self) -> set[str]:
        """Its colours, by name."""
        return {self.color, self.second_color} - {""}

    def render(self, side: int) -> PIL.Image.Image:
        """The ground, as a picture of its own."""
        first = np.array(GROUNDS[self.color], dtype=np.float64)
        if not self.second_color:
            return PIL.Image.new("RGB", (side, side), GROUNDS[self.color])
        rows, columns = np.mgrid[0:side, 0:side] * 8 // side
        shares = {
            "striped": columns % 2,
            "checked": (rows + columns) % 2,
            "fading": np.mgrid[0:side, 0:side][0] / max(1, side - 1),
        }[self.pattern]
        second = np.array(GROUNDS[self.second_color], dtype=np.float64)
        values = first + shares[..., None] * (second - first)
        return PIL.Image.fromarray(values.round().astype(np.uint8))


@dataclass(frozen=True)
class StillLife:
    """All that decides a picture."""

    ground: Ground
    layout: str
    things: tuple[Thing, ...]
    """In the order of the layout's places; the last places may be empty."""

    @property
    def positions(self) -> Iterator[tuple[str, Thing]]:
        """Each thing with the name of its place."""
        places = LAYOUTS[self.layout]
        return ((name, thing) for (name, _, _), thing in zip(places, self.things, strict=False))

    @property
    def split(self) -> Split:
        """Held out where one of its things is."""
        held_out = any(thing.split == "held-out" for thing in self.things)
        return "held-out" if held_out else "train"

    def render(self, side: int) -> PIL.Image.Image:
        """The picture, RGB, `side` pixels to a side."""
        picture = self.ground.render(side)
        box = round(side * (SINGLE_BOX if self.layout == "one" else SHARED_BOX))
        for (_, across, down), thing in zip(LAYOUTS[self.layout], self.things, strict=False):
            drawn = thing.render(box)
            corner = (
                round(side * across - drawn.width / 2),
                round(side * down - drawn.height / 2),
            )
            picture.paste(drawn, corner, drawn)
        return picture

    def to_jpeg(self, side: int) -> bytes:
        """The picture as a file."""
        file = io.BytesIO()
        self.render(side).save(file, "JPEG", **_JPEG)
        return file.getvalue()


class ObjectPool:
    """All things there are, and the choice among them."""

    def __init__(self) -> None:
        shapes = [Thing(f"{colour} {shape}", colour) for shape in SHAPES for colour in GROUNDS]
        self.shapes = tuple(shapes)

    @cached_property
    def objects(self) -> tuple[Thing, ...]:
        """Emoji and clip art whose names say what they are, in the order of the corpus."""
        found = []
        splits: tuple[Split, ...] = ("train", "held-out")
        kinds: tuple[EmbeddedKind, ...] = ("emoji", "clip-art")
        for split in splits:
            for kind in kinds:
                documents = load_embedded(kind, split)
                found += [
                    _thing(document, split) for document in documents if _is_suitable(document)
                ]
        return tuple(found)

    def sample_still_life(self, random: np.random.Generator) -> StillLife:
        """Set out one to four different things."""
        layout = str(random.choice(list(LAYOUTS), p=(0.35, 0.2, 0.2, 0.25)))
        count = int(random.integers(3, 5)) if layout == "corners" else len(LAYOUTS[layout])
        ground = self.sample_ground(random)
        things: list[Thing] = []
        while len(things) < count:
            thing = self.sample_thing(random)
            if thing.name not in {t.name for t in things} and thing.color not in ground.colors:
                things.append(thing)
        return StillLife(ground, layout, tuple(things))

    def sample_thing(self, random: np.random.Generator) -> Thing:
        """A shape two times in five, else an object."""
        kind = self.shapes if random.random() < 0.4 else self.objects
        return kind[int(random.integers(len(kind)))]

    def sample_ground(self, random: np.random.Generator) -> Ground:
        """Plain half of the time."""
        pattern = str(random.choice(GROUND_PATTERNS, p=(0.5, 0.15, 0.15, 0.2)))
        colour, second = map(str, random.choice(list(GROUNDS), 2, replace=False))
        return Ground(pattern, colour, "" if pattern == "plain" else second)


@functools.cache
def object_pool() -> ObjectPool:
    """The one cupboard of a process."""
    return ObjectPool()


def _is_suitable(document: Document) -> bool:
    known = document.attributes
    return (
        known.get("category") in _CATEGORIES
        and "skin-tone" not in known
        and _NAME.fullmatch(known["caption"]) is not None
    )


def _thing(document: Document, split: Split) -> Thing:
    return Thing(
        name=document.attributes["caption"],
        source=document.source,
        license=document.license,
        split=split,
        data=document.images[0].read_bytes(),
    )
