"""Still lifes: synthetic images of embedded emoji, clip art and plain shapes on a ground.

A still life is sampled with a random generator and records everything that it shows, so captions,
questions and answers are true by construction. Positions have names: one thing in the middle, two
in a row or a column, three or four in the corners.
"""

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
"""Patterns of the ground: one color, stripes or squares of two, or a vertical gradient."""

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
"""Named positions: the center, as fractions of the image side from the left and from the top."""

SINGLE_BOX, SHARED_BOX = 0.75, 0.42
"""Side of a thing's box as a fraction of the image side: alone, and with other things."""

_CATEGORIES = {
    *("animals-nature", "food-drink", "travel-places", "objects", "activities"),
    *("animals", "food", "transportation", "tools", "plants", "recreation", "buildings"),
}
_NAME = re.compile(r"[a-z]+(?:[ -][a-z]+){0,2}")
_JPEG = {"quality": 90, "subsampling": 0}


@dataclass(frozen=True)
class Thing:
    """An object of a still life: a colored shape, or an emoji or clip art."""

    name: str
    """Name as used in captions; that of a shape begins with its color."""

    color: str = ""
    """Color of a shape; empty for images."""

    source: str = "shapes"
    license: str = "CC0-1.0"
    split: Split = "train"
    data: bytes = b""
    """The image file; empty for shapes."""

    def render(self, box: int) -> PIL.Image.Image:
        """Render the thing on a transparent background, its longer side `box` pixels."""
        if self.color:
            return draw_shape(self.name.split()[-1], GROUNDS[self.color], box)
        with PIL.Image.open(io.BytesIO(self.data)) as file:
            image = file.convert("RGBA")
        scale = box / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, PIL.Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Ground:
    """The background of a still life."""

    pattern: str
    color: str
    second_color: str = ""
    """The second color of the pattern; empty on a plain ground."""

    @property
    def description(self) -> str:
        """The ground in words, such as "striped red and blue ground"."""
        colors = f"{self.color} and {self.second_color}" if self.second_color else self.color
        return f"{self.pattern} {colors} ground"

    @property
    def colors(self) -> set[str]:
        """The names of its colors."""
        return {self.color, self.second_color} - {""}

    def render(self, side: int) -> PIL.Image.Image:
        """Render the ground as an RGB image of `side` x `side` pixels."""
        first = np.array(GROUNDS[self.color], dtype=np.float64)
        if not self.second_color:
            return PIL.Image.new("RGB", (side, side), GROUNDS[self.color])
        rows, columns = np.mgrid[0:side, 0:side] * 8 // side
        blend = {
            "striped": columns % 2,
            "checked": (rows + columns) % 2,
            "fading": np.mgrid[0:side, 0:side][0] / max(1, side - 1),
        }[self.pattern]
        second = np.array(GROUNDS[self.second_color], dtype=np.float64)
        values = first + blend[..., None] * (second - first)
        return PIL.Image.fromarray(values.round().astype(np.uint8))


@dataclass(frozen=True)
class StillLife:
    """A complete description of one image."""

    ground: Ground
    layout: str
    things: tuple[Thing, ...]
    """Things in the order of the layout's positions; the last positions may be empty."""

    @property
    def positions(self) -> Iterator[tuple[str, Thing]]:
        """(position name, thing) of each thing."""
        layout = LAYOUTS[self.layout]
        return ((name, thing) for (name, _, _), thing in zip(layout, self.things, strict=False))

    @property
    def split(self) -> Split:
        """The split: "held-out" if one of its things is held out."""
        held_out = any(thing.split == "held-out" for thing in self.things)
        return "held-out" if held_out else "train"

    def render(self, side: int) -> PIL.Image.Image:
        """Render the still life as an RGB image of `side` x `side` pixels."""
        image = self.ground.render(side)
        box = round(side * (SINGLE_BOX if self.layout == "one" else SHARED_BOX))
        for (_, across, down), thing in zip(LAYOUTS[self.layout], self.things, strict=False):
            drawn = thing.render(box)
            corner = (round(side * across - drawn.width / 2), round(side * down - drawn.height / 2))
            image.paste(drawn, corner, drawn)
        return image

    def to_jpeg(self, side: int) -> bytes:
        """Render the still life as a JPEG file."""
        file = io.BytesIO()
        self.render(side).save(file, "JPEG", **_JPEG)
        return file.getvalue()


class ObjectPool:
    """The pool of shapes and objects from which still lifes are sampled."""

    def __init__(self) -> None:
        self.shapes = tuple(Thing(f"{color} {shape}", color) for shape in SHAPES for color in GROUNDS)

    @cached_property
    def objects(self) -> tuple[Thing, ...]:
        """Emoji and clip art with plain English names, in the order of the corpus."""
        found = []
        splits: tuple[Split, ...] = ("train", "held-out")
        kinds: tuple[EmbeddedKind, ...] = ("emoji", "clip-art")
        for split in splits:
            for kind in kinds:
                documents = load_embedded(kind, split)
                found += [_thing(document, split) for document in documents if _is_suitable(document)]
        return tuple(found)

    def sample_still_life(self, random: np.random.Generator) -> StillLife:
        """Sample a still life of one to four different things."""
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
        """Sample a shape with probability 0.4, else an object."""
        kind = self.shapes if random.random() < 0.4 else self.objects
        return kind[int(random.integers(len(kind)))]

    def sample_ground(self, random: np.random.Generator) -> Ground:
        """Sample a ground, plain with probability 0.5."""
        pattern = str(random.choice(GROUND_PATTERNS, p=(0.5, 0.15, 0.15, 0.2)))
        color, second = map(str, random.choice(list(GROUNDS), 2, replace=False))
        return Ground(pattern, color, "" if pattern == "plain" else second)


@functools.cache
def object_pool() -> ObjectPool:
    """Return the object pool, built once per process."""
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
