"""Edits of still lifes: an instruction and the scene after it."""

from dataclasses import dataclass, replace

import numpy as np

from calumma.corpora.still_life import COLORS, LAYOUTS, THING_SIZES, StillLife, Thing, sample_thing
from calumma.corpora.still_life_captions import choose, with_article

EDIT_KINDS = ("background", "recolor", "replace", "remove", "add", "move", "swap", "resize")


@dataclass(frozen=True)
class StillLifeEdit:
    """An instruction that changes one thing of a scene, or its background."""

    kind: str
    instruction: str
    """Without a capital letter and a full stop, such as "make the circle red"."""

    before: StillLife
    after: StillLife


def sample_edit(scene: StillLife, random: np.random.Generator, kind: str | None = None) -> StillLifeEdit | None:
    """Sample an edit whose result is a scene of the training split.

    Args:
        scene: the scene before it.
        random: the generator.
        kind: one of `EDIT_KINDS`; None samples one that the scene allows.

    Returns:
        None if the scene does not allow the kind, or if 20 samples gave held-out scenes only.
    """
    allowed = _allowed_kinds(scene)
    if kind is not None and kind not in allowed:
        return None
    for _ in range(20):
        chosen = kind or choose(random, allowed)
        instruction, after = _EDITS[chosen](scene, random)
        if after.split == "train":
            return StillLifeEdit(chosen, instruction, scene, after)
    return None


def _unique_slots(scene: StillLife) -> list[int]:
    return [n for n, thing in enumerate(scene.slots) if thing and scene.things.count(thing) == 1]


def _allowed_kinds(scene: StillLife) -> list[str]:
    kinds, unique = ["background"], _unique_slots(scene)
    num_things = len(scene.things)
    if unique:
        kinds += ["replace"]
        if any(scene.things[n].color for n in range(num_things)):
            kinds += ["recolor", "recolor"]
    if scene.layout == "corners" and len(unique) == num_things:
        kinds += ["add", "move"] if num_things == 3 else ["remove"]
    if scene.layout in ("row", "column") and len(unique) == 2:
        kinds += ["swap"]
    if scene.layout == "single":
        kinds += ["resize"]
    return kinds


def _unused_color(scene: StillLife, random: np.random.Generator) -> str:
    used = {scene.background, *(thing.color for thing in scene.things)}
    return choose(random, [color for color in COLORS if color not in used])


def _put(scene: StillLife, slot: int, thing: Thing | None) -> StillLife:
    return replace(scene, slots=(*scene.slots[:slot], thing, *scene.slots[slot + 1 :]))


def _new_thing(scene: StillLife, random: np.random.Generator) -> Thing:
    while True:
        thing = sample_thing(random, scene.background)
        if thing not in scene.things:
            return thing


def _background(scene: StillLife, random: np.random.Generator) -> tuple[str, StillLife]:
    color = _unused_color(scene, random)
    wordings = ("make the background {}", "change the background to {}", "turn the background {}")
    return choose(random, wordings).format(color), replace(scene, background=color)


def _recolor(scene: StillLife, random: np.random.Generator) -> tuple[str, StillLife]:
    slot = choose(random, [n for n, thing in enumerate(scene.slots) if thing and thing.color])
    thing, color = scene.slots[slot], _unused_color(scene, random)
    assert thing is not None
    is_only = sum(other.kind == thing.kind for other in scene.things) == 1
    name = choose(random, (thing.name, thing.kind)) if is_only else thing.name
    wordings = ("make the {} {}", "turn the {} {}", "change the {} to {}")
    return choose(random, wordings).format(name, color), _put(scene, slot, Thing(thing.kind, color))


def _replace(scene: StillLife, random: np.random.Generator) -> tuple[str, StillLife]:
    slot = choose(random, _unique_slots(scene))
    thing, new = scene.slots[slot], _new_thing(scene, random)
    assert thing is not None
    wordings = ("replace the {} with {}", "put {1} in place of the {0}")
    sentence = choose(random, wordings)
    return sentence.format(thing.name, with_article(new.name)), _put(scene, slot, new)


def _remove(scene: StillLife, random: np.random.Generator) -> tuple[str, StillLife]:
    slot = choose(random, _unique_slots(scene))
    thing = scene.slots[slot]
    assert thing is not None
    wordings = ("remove the {}", "take away the {}")
    return choose(random, wordings).format(thing.name), _put(scene, slot, None)


def _add(scene: StillLife, random: np.random.Generator) -> tuple[str, StillLife]:
    slot, new = scene.slots.index(None), _new_thing(scene, random)
    wordings = ("add {} {}", "put {} {}")
    name = LAYOUTS[scene.layout][slot][0]
    return choose(random, wordings).format(with_article(new.name), name), _put(scene, slot, new)


def _move(scene: StillLife, random: np.random.Generator) -> tuple[str, StillLife]:
    slot, empty = choose(random, _unique_slots(scene)), scene.slots.index(None)
    thing = scene.slots[slot]
    assert thing is not None
    target = LAYOUTS[scene.layout][empty][0].removeprefix("at ")
    return f"move the {thing.name} to {target}", _put(_put(scene, slot, None), empty, thing)


def _swap(scene: StillLife, random: np.random.Generator) -> tuple[str, StillLife]:
    first, second = scene.things
    wordings = ("swap the {} and the {}", "let the {} and the {} change places")
    return choose(random, wordings).format(first.name, second.name), replace(scene, slots=(second, first))


def _resize(scene: StillLife, random: np.random.Generator) -> tuple[str, StillLife]:
    size = next(size for size in THING_SIZES if size != scene.size)
    comparative = {"large": "larger", "small": "smaller"}[size]
    word = choose(random, (size, comparative))
    return f"make the {scene.things[0].name} {word}", replace(scene, size=size)


_EDITS = {
    "background": _background,
    "recolor": _recolor,
    "replace": _replace,
    "remove": _remove,
    "add": _add,
    "move": _move,
    "swap": _swap,
    "resize": _resize,
}
