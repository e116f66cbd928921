"""A reader of still lifes without a learned network: the scene whose rendering is nearest.

Every thing is compared with every place of every layout; places do not overlap, so the best thing
of a place is the same whatever is at the others. Both sides of a comparison are blurred: fine
detail is what an image tokenizer changes. Shapes: N things, b pixels per side of a box.
"""

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from calumma.corpora.still_life import (
    COLORS,
    LAYOUTS,
    SIDE,
    THING_SIZES,
    THINGS,
    StillLife,
    Thing,
    layout_boxes,
    thing_image,
)
from calumma.corpora.synthetic_scenes import GROUNDS

_EDGE = 3
"""Pixels along each edge whose median is the color of the background: no thing covers half."""

_NUM_BLURS = 3
"""Passes of the blur: three are nearly a Gaussian of 1.2 pixels."""

_EMPTY_RMSE = 5.0
"""Largest difference of an empty corner from the background, after the blur, of values from 0 to 255."""

Pixels = NDArray[np.float32]
_PALETTE = np.array([GROUNDS[color] for color in COLORS], dtype=np.float32)


@dataclass(frozen=True)
class StillLifeReading:
    """What an image shows, and how certain that is."""

    scene: StillLife

    rmse: float
    """Root mean square difference from the rendering of the scene, of values from 0 to 255."""


@functools.cache
def _blur_matrix(side: int) -> Pixels:
    """Return the blur along one axis, [side, side]: weights 1/4, 1/2, 1/4, the edge repeated."""
    matrix = np.eye(side) / 2 + (np.eye(side, k=1) + np.eye(side, k=-1)) / 4
    matrix[0, 0] = matrix[-1, -1] = 0.75
    return np.linalg.matrix_power(matrix, _NUM_BLURS).astype(np.float32)


def _blur(values: Pixels) -> Pixels:
    """Blur squares, [..., b, b, C]."""
    matrix = _blur_matrix(values.shape[-2])
    rows = matrix @ values.reshape(*values.shape[:-2], -1)
    blurred: Pixels = matrix @ rows.reshape(values.shape)
    return blurred


@functools.cache
def _templates(box: int, color: str) -> tuple[Pixels, Pixels]:
    """Return how all things differ from a background, blurred, [N, b * b * 3], and their squared norms, [N].

    Things of the background's color, which cannot be seen, have an infinite norm.
    """
    values = np.stack([np.asarray(thing_image(thing, box), dtype=np.float32) for thing in THINGS])
    differences = (values[..., :3] - _PALETTE[COLORS.index(color)]) * (values[..., 3:] / 255)
    flat: Pixels = _blur(differences).reshape(len(THINGS), -1)
    norms = np.square(flat).sum(axis=1)
    norms[[thing.color == color for thing in THINGS]] = np.inf
    return flat, norms


def background_color_name(pixels: Pixels) -> str:
    """Return the color nearest to the median of the image's edge, [H, W, 3] values from 0 to 255."""
    edges = (pixels[:_EDGE], pixels[-_EDGE:], pixels[:, :_EDGE], pixels[:, -_EDGE:])
    median = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    return COLORS[int(np.square(_PALETTE - median).sum(axis=1).argmin())]


def read_still_life(image: PIL.Image.Image) -> StillLifeReading:
    """Return the still life whose rendering is nearest to an image of any size."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32)
    color = background_color_name(pixels)
    ground = _PALETTE[COLORS.index(color)]
    candidates = [
        _best_of_layout(pixels, ground, color, layout, size)
        for layout in LAYOUTS
        for size in (THING_SIZES if layout == "single" else ("",))
    ]
    _, scene = max(candidates, key=lambda candidate: candidate[0])
    rendered = np.asarray(scene.render(), dtype=np.float32)
    return StillLifeReading(scene, float(np.sqrt(np.square(pixels - rendered).mean())))


def _best_of_layout(pixels: Pixels, ground: Pixels, color: str, layout: str, size: str) -> tuple[float, StillLife]:
    """Return the best scene of a layout, and by how much it is nearer than the plain background."""
    gains: list[float] = []
    things: list[Thing | None] = []
    is_plain: list[bool] = []
    for left, top, box in layout_boxes(layout, size):
        templates, norms = _templates(box, color)
        difference = _blur(pixels[top : top + box, left : left + box] - ground).reshape(-1)
        of_things = 2 * (templates @ difference) - norms  # |d|^2 - |d - t|^2
        best = int(of_things.argmax())
        gains.append(float(of_things[best]))
        things.append(THINGS[best])
        is_plain.append(bool(np.square(difference).mean() < _EMPTY_RMSE**2))
    if layout == "corners":
        weakest = int(np.argmin(gains))
        if gains[weakest] <= 0 and is_plain[weakest]:
            gains[weakest], things[weakest] = 0.0, None
    return sum(gains), StillLife(color, layout, tuple(things), size)


@dataclass
class JudgeErrors:
    """Confusion tables of the judge over scenes that are known."""

    num_scenes: int = 0
    num_things: int = 0
    wrong_scenes: int = 0
    """Scenes of which anything is wrong."""

    layouts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(true, read) layouts that differ."""

    backgrounds: Counter[tuple[str, str]] = field(default_factory=Counter)
    sizes: Counter[tuple[str, str]] = field(default_factory=Counter)
    things: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(true, read) names of things at the same place, where the layouts agree."""

    @property
    def scene_error(self) -> float:
        """Fraction of scenes that are read wrong."""
        return self.wrong_scenes / max(1, self.num_scenes)

    @property
    def thing_error(self) -> float:
        """Fraction of things that are read wrong, or in another layout."""
        return self.things.total() / max(1, self.num_things)

    def to_markdown(self) -> str:
        """Return the tables as Markdown."""
        lines = [
            f"{self.num_scenes:,} scenes, {self.wrong_scenes} read wrong ({self.scene_error:.2%}); "
            f"{self.num_things:,} things, {self.things.total()} read wrong ({self.thing_error:.2%}).",
            "",
            "| what | true | read | times |",
            "|---|---|---|---|",
        ]
        for name in ("backgrounds", "layouts", "sizes", "things"):
            for (true, read), times in getattr(self, name).most_common():
                lines.append(f"| {name[:-1]} | {true} | {read} | {times} |")
        return "\n".join(lines) + "\n"


def measure_judge(pairs: Iterable[tuple[StillLife, PIL.Image.Image]]) -> JudgeErrors:
    """Read images of known scenes and count the confusions."""
    errors = JudgeErrors()
    for scene, image in pairs:
        read = read_still_life(image).scene
        errors.num_scenes += 1
        errors.num_things += len(scene.things)
        errors.wrong_scenes += read != scene
        for name, true, found in (
            ("layouts", scene.layout, read.layout),
            ("backgrounds", scene.background, read.background),
            ("sizes", scene.size, read.size),
        ):
            if true != found and (name != "sizes" or scene.layout == read.layout):
                getattr(errors, name)[true, found] += 1
        for slot, thing in enumerate(scene.slots):
            found_thing = read.slots[slot] if scene.layout == read.layout else None
            if thing != found_thing:
                errors.things[thing.name if thing else "nothing", found_thing.name if found_thing else "nothing"] += 1
    return errors
