"""Held-out prompts of the `still-lifes` task: scenes, captions and how a drawn image is scored.

The six skills are those of GenEval (arXiv:2310.11513), read by a program instead of a detector.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calumma.corpora.still_life import StillLife, Thing, sample_still_life
from calumma.corpora.still_life_captions import make_caption
from calumma.corpora.still_life_edits import StillLifeEdit, sample_edit

_PAIR_LAYOUTS = ("row", "column")


def has_kind(true: StillLife, read: StillLife) -> bool:
    """Return whether the image has a thing of the first kind of the scene."""
    return true.things[0].kind in {thing.kind for thing in read.things}


def has_kinds(true: StillLife, read: StillLife) -> bool:
    """Return whether the image has things of all kinds of the scene."""
    return {thing.kind for thing in true.things} <= {thing.kind for thing in read.things}


def has_number(true: StillLife, read: StillLife) -> bool:
    """Return whether the image has as many things as the scene, all of its kind."""
    return sorted(thing.kind for thing in true.things) == sorted(thing.kind for thing in read.things)


def has_things(true: StillLife, read: StillLife) -> bool:
    """Return whether the image has all things of the scene in their colors."""
    return set(true.things) <= set(read.things)


def has_order(true: StillLife, read: StillLife) -> bool:
    """Return whether the kinds of the scene have their places."""
    return true.layout == read.layout and _kinds(true.slots) == _kinds(read.slots)


def _kinds(slots: tuple[Thing | None, ...]) -> list[str]:
    return [thing.kind if thing else "" for thing in slots]


@dataclass(frozen=True)
class DrawingSkill:
    """A skill: the layouts that its prompts have, further conditions, and the score of an image."""

    layouts: tuple[str, ...]
    score: Callable[[StillLife, StillLife], bool]
    note: str
    accepts: Callable[[StillLife], bool] = lambda scene: True


def _is_shape(scene: StillLife) -> bool:
    return bool(scene.things[0].color)


def _is_shape_pair(scene: StillLife) -> bool:
    first, second = scene.things
    return bool(first.color and second.color) and first.color != second.color and first.kind != second.kind


DRAWING_SKILLS = {
    "one_object": DrawingSkill(("single",), has_kind, "the thing is there"),
    "two_objects": DrawingSkill(_PAIR_LAYOUTS, has_kinds, "both kinds of things are there"),
    "counting": DrawingSkill(("single", *["count"] * 3), has_number, "number and kind, 1 to 4 equal things"),
    "colors": DrawingSkill(("single",), has_things, "the shape has its color", _is_shape),
    "position": DrawingSkill(_PAIR_LAYOUTS, has_order, "both kinds have their places"),
    "color_of_each": DrawingSkill(_PAIR_LAYOUTS, has_things, "both shapes have their colors", _is_shape_pair),
}
"""The skills by name."""


@dataclass(frozen=True)
class DrawingPrompt:
    """A held-out scene and its caption."""

    skill: str
    scene: StillLife
    caption: str

    def score(self, read: StillLife) -> bool:
        """Return whether an image that was read as `read` passes."""
        return DRAWING_SKILLS[self.skill].score(self.scene, read)


def sample_drawing_prompts(skill: str, count: int, seed: int, *, new_wording: bool = False) -> list[DrawingPrompt]:
    """Sample the prompts of a skill; no training document has one of the scenes.

    Args:
        skill: a name in `DRAWING_SKILLS`.
        count: number of prompts.
        seed: of the scenes and the wordings, which do not depend on `new_wording`.
        new_wording: use wordings that training does not have.
    """
    definition = DRAWING_SKILLS[skill]
    random = np.random.default_rng([seed, list(DRAWING_SKILLS).index(skill)])
    prompts: list[DrawingPrompt] = []
    while len(prompts) < count:
        layout = definition.layouts[len(prompts) % len(definition.layouts)]
        scene = sample_still_life(random, layout, "counts" if layout == "count" else "combinations")
        if definition.accepts(scene):
            wording = np.random.default_rng([seed, len(prompts)])
            caption = make_caption(scene, wording, wordings="held-out" if new_wording else "all", complete=True)
            prompts.append(DrawingPrompt(skill, scene, caption))
    return prompts


def sample_held_out_scenes(count: int, seed: int) -> list[StillLife]:
    """Sample scenes for captions and questions: new combinations, and every fifth a new count."""
    random = np.random.default_rng([seed, 100])
    layouts = ("single", "row", "column", "corners", "count", "triple")
    return [
        sample_still_life(random, layout, "counts" if layout == "count" else "combinations")
        for layout in (layouts[number % len(layouts)] for number in range(count))
    ]


@dataclass(frozen=True)
class StoryPrompt:
    """A caption of the first image of a story, and what changes from each image to the next."""

    scene: StillLife
    caption: str
    edits: tuple[StillLifeEdit, ...]

    @property
    def scenes(self) -> tuple[StillLife, ...]:
        """The scenes of all images."""
        return (self.scene, *(edit.after for edit in self.edits))


def sample_held_out_stories(count: int, seed: int) -> list[StoryPrompt]:
    """Sample stories of three to five images that begin with a held-out scene."""
    random = np.random.default_rng([seed, 400])
    stories: list[StoryPrompt] = []
    while len(stories) < count:
        layout = ("single", "row", "column", "corners")[len(stories) % 4]
        first = scene = sample_still_life(random, layout, "combinations")
        caption = make_caption(first, random, complete=True)
        edits: list[StillLifeEdit] = []
        for _ in range(int(random.integers(2, 5))):
            if (edit := sample_edit(scene, random)) is not None:
                edits.append(edit)
                scene = edit.after
        if len(edits) >= 2:
            stories.append(StoryPrompt(first, caption, tuple(edits)))
    return stories


def sample_held_out_edits(count: int, seed: int) -> list[StillLifeEdit]:
    """Sample edits of held-out scenes, all kinds of edits that they allow."""
    random = np.random.default_rng([seed, 200])
    edits: list[StillLifeEdit] = []
    while len(edits) < count:
        layout = ("single", "row", "column", "corners")[len(edits) % 4]
        edit = sample_edit(sample_still_life(random, layout, "combinations"), random)
        if edit is not None:
            edits.append(edit)
    return edits
