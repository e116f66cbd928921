"""Still lifes: images of one to four things at named places on a plain background.

A still life is sampled with a random generator and records everything that it shows, so captions,
questions, answers and changes are true by construction. Things are shapes in eight colors or flat
emoji under a free license. Every place has its center on a corner of a grid of 8 x 8 cells or in
the middle of the image, so the same thing at the same place gives the same pixels.
"""

import functools
import io
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import PIL.Image

from calumma.corpora.embedded import load_embedded
from calumma.corpora.synthetic_scenes import GROUNDS, SHAPES, draw_shape, encode_fast_png

COLORS = tuple(GROUNDS)
"""The eight colors of shapes and backgrounds."""

OBJECTS = (
    *("banana", "strawberry", "avocado", "watermelon", "broccoli", "cactus", "umbrella", "balloon"),
    *("airplane", "bus", "anchor", "bell", "butterfly", "turtle", "whale", "sunflower"),
    *("star", "guitar", "sailboat", "rocket", "mushroom", "penguin", "crab", "snowman"),
)
"""The flat emoji, by their captions in the embedded corpus."""

OBJECT_SOURCE = "fluent-flat"
SIDE = 64
"""Default side of an image in pixels."""

THING_SIZES = {"large": 52, "small": 28}
"""Side of the box of a single thing, of 64 pixels; a small one is as in a row."""

MEDIUM = "medium"
"""A size between both, only of images for the image tokenizer."""

_MEDIUM_BOX = 32

LAYOUTS: dict[str, tuple[tuple[str, float, float], ...]] = {
    "single": (("in the middle", 0.5, 0.5),),
    "row": (("on the left", 0.25, 0.5), ("on the right", 0.75, 0.5)),
    "column": (("at the top", 0.5, 0.25), ("at the bottom", 0.5, 0.75)),
    "triple": (("on the left", 0.1875, 0.5), ("in the middle", 0.5, 0.5), ("on the right", 0.8125, 0.5)),
    "corners": (
        ("at the top left", 0.25, 0.25),
        ("at the top right", 0.75, 0.25),
        ("at the bottom left", 0.25, 0.75),
        ("at the bottom right", 0.75, 0.75),
    ),
}
"""Named places: the center, as fractions of the side from the left and from the top."""

StillLifeSplit = Literal["train", "combinations", "counts"]
"""Training scenes; things that never share that background; and numbers of a thing in a layout."""

_PLURALS = {"cactus": "cacti", "strawberry": "strawberries", "butterfly": "butterflies"}


@dataclass(frozen=True)
class Thing:
    """A colored shape, or an object, whose color is part of it."""

    kind: str
    """One of `SHAPES` or `OBJECTS`."""

    color: str = ""
    """Color of a shape; empty for objects."""

    @property
    def name(self) -> str:
        """The thing in words, such as "red circle" or "banana"."""
        return f"{self.color} {self.kind}".strip()

    @property
    def plural(self) -> str:
        """Several of the thing in words.

        >>> Thing("cross", "red").plural, Thing("cactus").plural
        ('red crosses', 'cacti')
        """
        plural = _PLURALS.get(self.kind, self.kind + ("es" if self.kind.endswith("s") else "s"))
        return f"{self.color} {plural}".strip()


SHAPE_THINGS = tuple(Thing(shape, color) for shape in SHAPES for color in COLORS)
OBJECT_THINGS = tuple(Thing(name) for name in OBJECTS)
THINGS = SHAPE_THINGS + OBJECT_THINGS
"""All 72 things."""


@functools.cache
def _object_images() -> dict[str, PIL.Image.Image]:
    images = {}
    for split in ("train", "held-out"):
        for document in load_embedded("emoji", split):
            if document.source == OBJECT_SOURCE and document.attributes["caption"] in OBJECTS:
                image = PIL.Image.open(io.BytesIO(document.images[0].read_bytes()))
                images[document.attributes["caption"]] = image.convert("RGBA")
    return images


@functools.cache
def thing_image(thing: Thing, box: int) -> PIL.Image.Image:
    """Return a thing on a transparent background, `box` x `box` pixels, RGBA."""
    if thing.color:
        return draw_shape(thing.kind, GROUNDS[thing.color], box)
    return _object_images()[thing.kind].resize((box, box), PIL.Image.Resampling.LANCZOS)


def layout_boxes(layout: str, size: str, side: int = SIDE) -> tuple[tuple[int, int, int], ...]:
    """Return the box of each place of a layout: left, top and side in pixels."""
    box = side * {"single": THING_SIZES.get(size, _MEDIUM_BOX), "triple": 20}.get(layout, 28) // SIDE
    return tuple((round(side * x - box / 2), round(side * y - box / 2), box) for _, x, y in LAYOUTS[layout])


@dataclass(frozen=True)
class StillLife:
    """A complete description of one image."""

    background: str
    layout: str
    slots: tuple[Thing | None, ...]
    """The thing at each place of the layout; only a corner can be empty."""

    size: str = ""
    """"large" or "small" for a single thing; empty for the other layouts."""

    @property
    def things(self) -> tuple[Thing, ...]:
        """The things, without the empty places."""
        return tuple(thing for thing in self.slots if thing)

    @property
    def positions(self) -> tuple[tuple[str, Thing], ...]:
        """(name of the place, thing) of each thing."""
        named = zip(LAYOUTS[self.layout], self.slots, strict=True)
        return tuple((slot[0], thing) for slot, thing in named if thing)

    @property
    def is_count(self) -> bool:
        """Whether all things, two or more, are the same."""
        return len(self.things) > 1 and len(set(self.things)) == 1

    @property
    def split(self) -> StillLifeSplit:
        """The split, decided by the scene alone: an eighth of the counts, a twentieth of the others."""
        names = sorted({thing.name for thing in self.things})
        if self.is_count:
            key = f"{len(self.things)} {names[0]} {self.layout}"
            return "counts" if zlib.crc32(key.encode()) % 8 == 0 else "train"
        key = "|".join([*names, self.background])
        return "combinations" if zlib.crc32(key.encode()) % 20 == 0 else "train"

    def render(self, side: int = SIDE) -> PIL.Image.Image:
        """Render the still life as an RGB image of `side` x `side` pixels."""
        image = PIL.Image.new("RGB", (side, side), GROUNDS[self.background])
        for (left, top, box), thing in zip(layout_boxes(self.layout, self.size, side), self.slots, strict=True):
            if thing:
                drawn = thing_image(thing, box)
                image.paste(drawn, (left, top), drawn)
        return image

    def to_png(self, side: int = SIDE) -> bytes:
        """Render the still life as a PNG file."""
        return encode_fast_png(self.render(side))


def sample_thing(random: np.random.Generator, background: str = "") -> Thing:
    """Sample a shape in another color than the background, or an object, equally often."""
    if random.random() < 0.5:
        shape, color = SHAPES[random.integers(len(SHAPES))], background
        while color == background:
            color = COLORS[random.integers(len(COLORS))]
        return Thing(shape, color)
    return OBJECT_THINGS[random.integers(len(OBJECT_THINGS))]


_LAYOUT_SHARES = {"single": 0.28, "row": 0.16, "column": 0.14, "triple": 0.1, "corners": 0.14, "count": 0.18}
_COUNT_LAYOUTS: dict[int, tuple[str, ...]] = {2: ("row", "column"), 3: ("triple",), 4: ("corners",)}


def sample_still_life(
    random: np.random.Generator, kind: str | None = None, split: StillLifeSplit = "train"
) -> StillLife:
    """Sample a still life of a split.

    Args:
        random: the generator.
        kind: one of the layouts, or "count" for equal things; None samples one.
        split: scenes of other splits are rejected.
    """
    while True:
        scene = _sample(random, kind or _choose_kind(random))
        if scene.split == split:
            return scene


def _choose_kind(random: np.random.Generator) -> str:
    return str(random.choice(list(_LAYOUT_SHARES), p=list(_LAYOUT_SHARES.values())))


def _sample(random: np.random.Generator, kind: str) -> StillLife:
    background = COLORS[random.integers(len(COLORS))]
    if kind == "count":
        number = int(random.integers(2, 5))
        layouts = _COUNT_LAYOUTS[number]
        thing = sample_thing(random, background)
        return StillLife(background, layouts[random.integers(len(layouts))], (thing,) * number)
    things: list[Thing | None] = []
    while len(things) < len(LAYOUTS[kind]):
        thing = sample_thing(random, background)
        if thing not in things:
            things.append(thing)
    if kind == "corners" and random.random() < 0.5:
        things[random.integers(4)] = None
    size = list(THING_SIZES)[random.integers(2)] if kind == "single" else ""
    return StillLife(background, kind, tuple(things), size)
