"""Scores of captions and edits of still lifes against the scenes that they are of."""

import re
from dataclasses import dataclass

import numpy as np

from calumma.corpora.still_life import THINGS, StillLife, Thing
from calumma.corpora.still_life_captions import NUMBER_WORDS, arrangement_wordings, with_article
from calumma.corpora.still_life_edits import StillLifeEdit

_KINDS = tuple(dict.fromkeys(thing.kind for thing in THINGS))


@dataclass(frozen=True)
class CaptionScore:
    """What a caption names right; lists have one entry per thing or color that could be named."""

    things: list[bool]
    """Whether the kind of each different thing is named."""

    colors: list[bool]
    """Whether each named shape, and a background that is mentioned, has its color."""

    positions: list[bool]
    """Whether things that are named have their places; empty where the scene has none."""

    counts: list[bool]
    """Whether the number of equal things is right; empty where things differ."""


def score_caption(scene: StillLife, caption: str) -> CaptionScore:
    """Compare a caption in any wording of the world with a scene."""
    caption = " ".join(caption.lower().replace(".", "").split())
    different = list(dict.fromkeys(scene.things))
    named = [thing for thing in different if _names(caption, thing.kind, Thing(thing.kind).plural)]
    colors = [_names(caption, thing.name, thing.plural) for thing in named if thing.color]
    if " background" in caption:
        wordings = ("{} background", "background is {}", "{} as the background", "{} in the background")
        colors.append(any(wording.format(scene.background) in caption for wording in wordings))
    counts = []
    if scene.is_count:
        counts = [f"{NUMBER_WORDS[len(scene.things)]} {scene.things[0].plural}" in caption]
    return CaptionScore([thing in named for thing in different], colors, _score_positions(scene, caption), counts)


def caption_agreement(scene: StillLife, caption: str) -> float:
    """Return the fraction of facts on which a scene and a caption agree, from 0 to 1.

    The facts are those of `score_caption`, and whether the scene has each kind of thing that the
    caption names.
    """
    words = " ".join(re.findall(r"[a-z]+", caption.lower()))
    score = score_caption(scene, words)
    kinds = {thing.kind for thing in scene.things}
    named = [kind in kinds for kind in _KINDS if _names(words, kind, Thing(kind).plural)]
    facts = [*named, *score.things, *score.colors, *score.positions, *score.counts]
    return sum(facts) / len(facts)


def _names(caption: str, *names: str) -> bool:
    return any(re.search(rf"\b{re.escape(name)}\b", caption) for name in names)


def _score_positions(scene: StillLife, caption: str) -> list[bool]:
    if scene.is_count or scene.layout == "single":
        return []
    if scene.layout == "corners":
        named = [(slot, thing) for slot, thing in scene.positions if thing.name in caption]
        return [_is_named_at(caption, thing.name, slot) for slot, thing in named]
    if not all(thing.name in caption for thing in scene.things):
        return []
    names = [with_article(thing.name) for thing in scene.things]
    return [any(wording.format(*names) in caption for wording in arrangement_wordings(scene.layout))]


def _is_named_at(caption: str, name: str, slot: str) -> bool:
    return f"{name} {slot}" in caption or f"{slot} {with_article(name)}" in caption


@dataclass(frozen=True)
class EditScore:
    """How an edited image compares with the requested one."""

    exact: bool
    changed: bool
    """Whether everything that the edit changes is as requested."""

    unchanged: float
    """Fraction of the things, and background, size and layout, that stayed as they were."""


def score_edit(edit: StillLifeEdit, read: StillLife | None) -> EditScore:
    """Compare what an image shows with the scene before and after an edit; None is no image."""
    if read is None:
        return EditScore(exact=False, changed=False, unchanged=0.0)
    aspects = [(_aspects(edit.before).get(name), value, name) for name, value in _aspects(edit.after).items()]
    found = _aspects(read)
    changed = [found.get(name) == after for before, after, name in aspects if before != after]
    kept = [found.get(name) == after for before, after, name in aspects if before == after]
    return EditScore(read == edit.after, all(changed), float(np.mean(kept)))


def score_consistency(edit: StillLifeEdit, before: StillLife | None, after: StillLife | None) -> float:
    """Return the fraction of what an edit leaves alone that is equal in the images around it.

    Args:
        edit: the edit between the images.
        before: what the image before it shows, right or not; None is no image.
        after: what the image after it shows.
    """
    if before is None or after is None:
        return 0.0
    unchanged = _aspects(edit.before).items() & _aspects(edit.after).items()
    shown_before, shown_after = _aspects(before), _aspects(after)
    return float(np.mean([shown_before.get(name) == shown_after.get(name) for name, _ in unchanged]))


def _aspects(scene: StillLife) -> dict[str, str]:
    slots = {f"{scene.layout} {number}": thing.name if thing else "" for number, thing in enumerate(scene.slots)}
    return {"background": scene.background, "layout": scene.layout, "size": scene.size, **slots}
