"""What is said of still lifes: captions, questions with answers, and pages that tell a change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calumma.corpora.still_life import ObjectPool, StillLife, Thing
from calumma.documents.document import Document, Image, Part, Text, Turn

NUMBER_WORDS = ("no", "one", "two", "three", "four")
KIND_PROBABILITIES = {"pair": 0.65, "question": 0.2, "page": 0.15}
"""Shares of the kinds of documents."""

_PLURAL_ONLY = ("glasses", "scissors", "jeans", "shorts", "binoculars", "grapes", "cherries")
_SPOKEN_Y = ("uni", "use", "eu", "one")
"""Beginnings whose first sound is no vowel, though the first letter is."""


def with_article(thing: str) -> str:
    """A thing with its article, if it takes one.

    >>> named("red circle"), named("orange square"), named("unicorn"), named("cherries")
    ('a red circle', 'an orange square', 'a unicorn', 'cherries')
    """
    last = thing.split()[-1]
    if last in _PLURAL_ONLY or (last.endswith("s") and not last.endswith(("ss", "us", "is"))):
        return thing
    an = thing[0] in "aeiou" and not thing.startswith(_SPOKEN_Y)
    return f"{'an' if an else 'a'} {thing}"


def make_caption(scene: StillLife, random: np.random.Generator) -> str:
    """All that a still life shows, in one of several wordings."""
    ground = with_article(scene.ground.description)
    names = [with_article(thing.name) for thing in scene.things]
    if scene.layout == "one":
        return _pick(random, (f"{names[0]} on {ground}", f"{ground} with {names[0]} on it"))
    if scene.layout in ("row", "column"):
        first, second = names
        one, other = ("left of", "right of") if scene.layout == "row" else ("above", "below")
        said = _pick(random, (f"{first} {one} {second}", f"{second} {other} {first}"))
        return f"{said}, on {ground}"
    places = [f"{with_article(thing.name)} {place}" for place, thing in scene.positions]
    order = [places[number] for number in random.permutation(len(places))]
    said = f"{', '.join(order[:-1])} and {order[-1]}"
    return _pick(
        random,
        (f"{said}, on {ground}", f"{NUMBER_WORDS[len(names)]} things on {ground}: {said}"),
    )


def make_question(
    scene: StillLife, pool: ObjectPool, random: np.random.Generator
) -> tuple[str, str]:
    """Something asked of a still life, and the answer."""
    place, thing = list(scene.positions)[int(random.integers(len(scene.things)))]
    other = pool.sample_thing(random)
    there = {one.name for one in scene.things}
    asked = [
        ("How many things are there?", NUMBER_WORDS[len(scene.things)]),
        (f"What is {place}?", with_article(thing.name)),
        (f"Where is the {thing.name}?", place),
        ("What is the ground like?", " and ".join([scene.ground.pattern, *_ground_colors(scene)])),
        (f"Is there {with_article(thing.name)}?", "yes"),
        (f"Is there {with_article(other.name)}?", "yes" if other.name in there else "no"),
    ]
    if scene.layout in ("row", "column"):
        first, second = (one.name for one in scene.things)
        one, back = ("left of", "right of") if scene.layout == "row" else ("above", "below")
        asked.append((f"What is {one} the {second}?", with_article(first)))
        asked.append((f"Is the {first} {back} the {second}?", "no"))
    return asked[int(random.integers(len(asked)))]


def _ground_colors(scene: StillLife) -> list[str]:
    ground = scene.ground
    return [ground.color, ground.second_color] if ground.second_color else [ground.color]


def make_still_life_document(number: int, seed: int, pool: ObjectPool, side: int) -> Document:
    """Document `number` of the corpus that a seed gives: always the same one.

    Args:
        number: from 0, without end.
        seed: of the corpus.
        cupboard: the things.
        side: pixels to a side of its pictures.
    """
    random = np.random.default_rng([seed, number])
    kind = str(random.choice(list(KIND_PROBABILITIES), p=list(KIND_PROBABILITIES.values())))
    scene = pool.sample_still_life(random)
    scenes, made = [scene], Document(id="")
    if kind == "pair":
        made = Document(id="", content=(Text(make_caption(scene, random)), _image(scene, side)))
    elif kind == "question":
        made = Document(id="", messages=_conversation(scene, pool, side, random))
    else:
        scenes, parts = _page(scene, pool, side, random)
        made = Document(id="", content=parts)
    things = [thing for one in scenes for thing in one.things]
    held_out = any(one.split == "held-out" for one in scenes)
    return replace(
        made,
        id=f"still-lifes/{seed}/{number}",
        source="still-lifes",
        license=" AND ".join(sorted({thing.license for thing in things})),
        attributes={
            "kind": kind,
            "split": "held-out" if held_out else "train",
            "things": "; ".join(thing.name for thing in scene.things),
            "layout": scene.layout,
            "ground": scene.ground.description,
        },
    )


def _conversation(
    scene: StillLife, pool: ObjectPool, side: int, random: np.random.Generator
) -> tuple[Turn, ...]:
    """A question about a picture, or a picture asked for."""
    if random.random() < 0.3:
        wish = f"Draw {make_caption(scene, random)}."
        return (Turn("user", (Text(wish),)), Turn("assistant", (_image(scene, side),)))
    asked, answer = make_question(scene, pool, random)
    picture, text = _image(scene, side), Text(asked)
    parts: tuple[Part, ...] = (picture, text) if random.random() < 0.5 else (text, picture)
    return (Turn("user", parts), Turn("assistant", (Text(answer),)))


def _page(
    scene: StillLife, pool: ObjectPool, side: int, random: np.random.Generator
) -> tuple[list[StillLife], tuple[Part, ...]]:
    """A still life that changes once or twice, each change told before it is shown."""
    scenes = [scene]
    parts: list[Part] = [Text(f"Here: {make_caption(scene, random)}."), _image(scene, side)]
    for _ in range(int(random.integers(1, 3))):
        sentence, scene = _change(scenes[-1], pool, random)
        scenes.append(scene)
        parts += [Text(sentence), _image(scene, side)]
    return scenes, tuple(parts)


def _change(
    scene: StillLife, pool: ObjectPool, random: np.random.Generator
) -> tuple[str, StillLife]:
    free = _new_thing(scene, pool, random)
    kind = random.random()
    if kind < 0.4:
        number = int(random.integers(len(scene.things)))
        old = scene.things[number]
        things = (*scene.things[:number], free, *scene.things[number + 1 :])
        return f"In place of the {old.name} there is now {with_article(free.name)}.", replace(
            scene, things=things
        )
    if kind < 0.7 and scene.layout in ("row", "column"):
        first, second = scene.things
        sentence = f"The {first.name} and the {second.name} change places."
        return sentence, replace(scene, things=(second, first))
    colours = {thing.color for thing in scene.things}
    while True:
        ground = pool.sample_ground(random)
        if ground != scene.ground and not ground.colors & colours:
            return f"Now the same on {with_article(ground.description)}.", replace(
                scene, ground=ground
            )


def _new_thing(scene: StillLife, pool: ObjectPool, random: np.random.Generator) -> Thing:
    """A thing that is not there yet and can be seen on the ground."""
    while True:
        thing = pool.sample_thing(random)
        there = {one.name for one in scene.things}
        if thing.name not in there and thing.color not in scene.ground.colors:
            return thing


def _image(scene: StillLife, side: int) -> Image:
    return Image(data=scene.to_jpeg(side), name="a still life")


def _pick(random: np.random.Generator, wordings: Sequence[str]) -> str:
    return wordings[int(random.integers(len(wordings)))]
