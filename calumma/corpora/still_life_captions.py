"""What is said of still lifes: captions, questions with answers, and pages that tell a change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calumma.corpora.still_life import Cupboard, StillLife, Thing
from calumma.documents.document import Document, Image, Part, Text, Turn

NUMBERS = ("no", "one", "two", "three", "four")
KINDS = {"pair": 0.65, "question": 0.2, "page": 0.15}
"""Shares of the kinds of documents."""

_PLURAL_ONLY = ("glasses", "scissors", "jeans", "shorts", "binoculars", "grapes", "cherries")
_SPOKEN_Y = ("uni", "use", "eu", "one")
"""Beginnings whose first sound is no vowel, though the first letter is."""


def named(thing: str) -> str:
    """A thing with its article, if it takes one.

    >>> named("red circle"), named("orange square"), named("unicorn"), named("cherries")
    ('a red circle', 'an orange square', 'a unicorn', 'cherries')
    """
    last = thing.split()[-1]
    if last in _PLURAL_ONLY or (last.endswith("s") and not last.endswith(("ss", "us", "is"))):
        return thing
    an = thing[0] in "aeiou" and not thing.startswith(_SPOKEN_Y)
    return f"{'an' if an else 'a'} {thing}"


def caption(scene: StillLife, random: np.random.Generator) -> str:
    """All that a still life shows, in one of several wordings."""
    ground = named(scene.ground.words)
    names = [named(thing.name) for thing in scene.things]
    if scene.layout == "one":
        return _pick(random, (f"{names[0]} on {ground}", f"{ground} with {names[0]} on it"))
    if scene.layout in ("row", "column"):
        first, second = names
        one, other = ("left of", "right of") if scene.layout == "row" else ("above", "below")
        said = _pick(random, (f"{first} {one} {second}", f"{second} {other} {first}"))
        return f"{said}, on {ground}"
    places = [f"{named(thing.name)} {place}" for place, thing in scene.placed]
    order = [places[number] for number in random.permutation(len(places))]
    said = f"{', '.join(order[:-1])} and {order[-1]}"
    return _pick(
        random,
        (f"{said}, on {ground}", f"{NUMBERS[len(names)]} things on {ground}: {said}"),
    )


def question(scene: StillLife, cupboard: Cupboard, random: np.random.Generator) -> tuple[str, str]:
    """Something asked of a still life, and the answer."""
    place, thing = list(scene.placed)[int(random.integers(len(scene.things)))]
    other = cupboard.thing(random)
    there = {one.name for one in scene.things}
    asked = [
        ("How many things are there?", NUMBERS[len(scene.things)]),
        (f"What is {place}?", named(thing.name)),
        (f"Where is the {thing.name}?", place),
        ("What is the ground like?", " and ".join([scene.ground.pattern, *_colours(scene)])),
        (f"Is there {named(thing.name)}?", "yes"),
        (f"Is there {named(other.name)}?", "yes" if other.name in there else "no"),
    ]
    if scene.layout in ("row", "column"):
        first, second = (one.name for one in scene.things)
        one, back = ("left of", "right of") if scene.layout == "row" else ("above", "below")
        asked.append((f"What is {one} the {second}?", named(first)))
        asked.append((f"Is the {first} {back} the {second}?", "no"))
    return asked[int(random.integers(len(asked)))]


def _colours(scene: StillLife) -> list[str]:
    ground = scene.ground
    return [ground.colour, ground.second] if ground.second else [ground.colour]


def document(number: int, seed: int, cupboard: Cupboard, side: int) -> Document:
    """Document `number` of the corpus that a seed gives: always the same one.

    Args:
        number: from 0, without end.
        seed: of the corpus.
        cupboard: the things.
        side: pixels to a side of its pictures.
    """
    random = np.random.default_rng([seed, number])
    kind = str(random.choice(list(KINDS), p=list(KINDS.values())))
    scene = cupboard.still_life(random)
    scenes, made = [scene], Document(id="")
    if kind == "pair":
        made = Document(id="", content=(Text(caption(scene, random)), _image(scene, side)))
    elif kind == "question":
        made = Document(id="", messages=_conversation(scene, cupboard, side, random))
    else:
        scenes, parts = _page(scene, cupboard, side, random)
        made = Document(id="", content=parts)
    things = [thing for one in scenes for thing in one.things]
    held_out = any(one.split == "held-out" for one in scenes)
    return replace(
        made,
        id=f"still-lifes/{seed}/{number}",
        source="still-lifes",
        licence=" AND ".join(sorted({thing.licence for thing in things})),
        attributes={
            "kind": kind,
            "split": "held-out" if held_out else "train",
            "things": "; ".join(thing.name for thing in scene.things),
            "layout": scene.layout,
            "ground": scene.ground.words,
        },
    )


def _conversation(
    scene: StillLife, cupboard: Cupboard, side: int, random: np.random.Generator
) -> tuple[Turn, ...]:
    """A question about a picture, or a picture asked for."""
    if random.random() < 0.3:
        wish = f"Draw {caption(scene, random)}."
        return (Turn("user", (Text(wish),)), Turn("assistant", (_image(scene, side),)))
    asked, answer = question(scene, cupboard, random)
    picture, text = _image(scene, side), Text(asked)
    parts: tuple[Part, ...] = (picture, text) if random.random() < 0.5 else (text, picture)
    return (Turn("user", parts), Turn("assistant", (Text(answer),)))


def _page(
    scene: StillLife, cupboard: Cupboard, side: int, random: np.random.Generator
) -> tuple[list[StillLife], tuple[Part, ...]]:
    """A still life that changes once or twice, each change told before it is shown."""
    scenes = [scene]
    parts: list[Part] = [Text(f"Here: {caption(scene, random)}."), _image(scene, side)]
    for _ in range(int(random.integers(1, 3))):
        told, scene = _change(scenes[-1], cupboard, random)
        scenes.append(scene)
        parts += [Text(told), _image(scene, side)]
    return scenes, tuple(parts)


def _change(
    scene: StillLife, cupboard: Cupboard, random: np.random.Generator
) -> tuple[str, StillLife]:
    free = _fresh(scene, cupboard, random)
    kind = random.random()
    if kind < 0.4:
        number = int(random.integers(len(scene.things)))
        old = scene.things[number]
        things = (*scene.things[:number], free, *scene.things[number + 1 :])
        return f"In place of the {old.name} there is now {named(free.name)}.", replace(
            scene, things=things
        )
    if kind < 0.7 and scene.layout in ("row", "column"):
        first, second = scene.things
        told = f"The {first.name} and the {second.name} change places."
        return told, replace(scene, things=(second, first))
    colours = {thing.colour for thing in scene.things}
    while True:
        ground = cupboard.ground(random)
        if ground != scene.ground and not ground.colours & colours:
            return f"Now the same on {named(ground.words)}.", replace(scene, ground=ground)


def _fresh(scene: StillLife, cupboard: Cupboard, random: np.random.Generator) -> Thing:
    """A thing that is not there yet and can be seen on the ground."""
    while True:
        thing = cupboard.thing(random)
        there = {one.name for one in scene.things}
        if thing.name not in there and thing.colour not in scene.ground.colours:
            return thing


def _image(scene: StillLife, side: int) -> Image:
    return Image(data=scene.jpeg(side), name="a still life")


def _pick(random: np.random.Generator, wordings: Sequence[str]) -> str:
    return wordings[int(random.integers(len(wordings)))]
