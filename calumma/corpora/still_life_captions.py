"""Documents about still lifes: captioned images, questions with answers, and pages of changes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calumma.corpora.still_life import ObjectPool, StillLife, Thing
from calumma.documents.document import Document, Image, Part, Text, Turn

NUMBER_WORDS = ("no", "one", "two", "three", "four")
KIND_PROBABILITIES = {"pair": 0.65, "question": 0.2, "page": 0.15}
"""Probabilities of the kinds of documents."""

_PLURAL_ONLY = ("glasses", "scissors", "jeans", "shorts", "binoculars", "grapes", "cherries")
_SPOKEN_Y = ("uni", "use", "eu", "one")
"""Beginnings with a vowel letter that is not pronounced as a vowel."""


def with_article(thing: str) -> str:
    """Add the indefinite article to a noun, unless it is a plural.

    >>> with_article("red circle"), with_article("orange square"), with_article("cherries")
    ('a red circle', 'an orange square', 'cherries')
    """
    last = thing.split()[-1]
    if last in _PLURAL_ONLY or (last.endswith("s") and not last.endswith(("ss", "us", "is"))):
        return thing
    an = thing[0] in "aeiou" and not thing.startswith(_SPOKEN_Y)
    return f"{'an' if an else 'a'} {thing}"


def make_caption(scene: StillLife, random: np.random.Generator) -> str:
    """Write a caption of everything that a still life shows, in one of several wordings."""
    ground = with_article(scene.ground.description)
    names = [with_article(thing.name) for thing in scene.things]
    if scene.layout == "one":
        return _pick(random, (f"{names[0]} on {ground}", f"{ground} with {names[0]} on it"))
    if scene.layout in ("row", "column"):
        first, second = names
        one, other = ("left of", "right of") if scene.layout == "row" else ("above", "below")
        sentence = _pick(random, (f"{first} {one} {second}", f"{second} {other} {first}"))
        return f"{sentence}, on {ground}"
    phrases = [f"{with_article(thing.name)} {position}" for position, thing in scene.positions]
    order = [phrases[number] for number in random.permutation(len(phrases))]
    listed = f"{', '.join(order[:-1])} and {order[-1]}"
    return _pick(random, (f"{listed}, on {ground}", f"{NUMBER_WORDS[len(names)]} things on {ground}: {listed}"))


def make_question(scene: StillLife, pool: ObjectPool, random: np.random.Generator) -> tuple[str, str]:
    """Write a question about a still life, and its answer."""
    position, thing = list(scene.positions)[int(random.integers(len(scene.things)))]
    other = pool.sample_thing(random)
    names = {thing.name for thing in scene.things}
    questions = [
        ("How many things are there?", NUMBER_WORDS[len(scene.things)]),
        (f"What is {position}?", with_article(thing.name)),
        (f"Where is the {thing.name}?", position),
        ("What is the ground like?", " and ".join([scene.ground.pattern, *_ground_colors(scene)])),
        (f"Is there {with_article(thing.name)}?", "yes"),
        (f"Is there {with_article(other.name)}?", "yes" if other.name in names else "no"),
    ]
    if scene.layout in ("row", "column"):
        first, second = (thing.name for thing in scene.things)
        one, back = ("left of", "right of") if scene.layout == "row" else ("above", "below")
        questions.append((f"What is {one} the {second}?", with_article(first)))
        questions.append((f"Is the {first} {back} the {second}?", "no"))
    return questions[int(random.integers(len(questions)))]


def _ground_colors(scene: StillLife) -> list[str]:
    ground = scene.ground
    return [ground.color, ground.second_color] if ground.second_color else [ground.color]


def make_still_life_document(number: int, seed: int, pool: ObjectPool, side: int) -> Document:
    """Generate one document of the corpus; it depends only on `number`, `seed` and `side`.

    Args:
        number: index of the document, from 0.
        seed: random seed of the corpus.
        pool: the things to sample from.
        side: side of the images in pixels.
    """
    random = np.random.default_rng([seed, number])
    kind = str(random.choice(list(KIND_PROBABILITIES), p=list(KIND_PROBABILITIES.values())))
    scene = pool.sample_still_life(random)
    scenes, document = [scene], Document(id="")
    if kind == "pair":
        document = Document(id="", content=(Text(make_caption(scene, random)), _image(scene, side)))
    elif kind == "question":
        document = Document(id="", messages=_conversation(scene, pool, side, random))
    else:
        scenes, parts = _page(scene, pool, side, random)
        document = Document(id="", content=parts)
    things = [thing for shown in scenes for thing in shown.things]
    held_out = any(shown.split == "held-out" for shown in scenes)
    return replace(
        document,
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


def _conversation(scene: StillLife, pool: ObjectPool, side: int, random: np.random.Generator) -> tuple[Turn, ...]:
    """Write a question about an image, or a request for an image."""
    if random.random() < 0.3:
        request = f"Draw {make_caption(scene, random)}."
        return (Turn("user", (Text(request),)), Turn("assistant", (_image(scene, side),)))
    question, answer = make_question(scene, pool, random)
    image, text = _image(scene, side), Text(question)
    parts: tuple[Part, ...] = (image, text) if random.random() < 0.5 else (text, image)
    return (Turn("user", parts), Turn("assistant", (Text(answer),)))


def _page(
    scene: StillLife, pool: ObjectPool, side: int, random: np.random.Generator
) -> tuple[list[StillLife], tuple[Part, ...]]:
    """Write a page on which a still life changes once or twice, each change described first."""
    scenes = [scene]
    parts: list[Part] = [Text(f"Here: {make_caption(scene, random)}."), _image(scene, side)]
    for _ in range(int(random.integers(1, 3))):
        sentence, scene = _change(scenes[-1], pool, random)
        scenes.append(scene)
        parts += [Text(sentence), _image(scene, side)]
    return scenes, tuple(parts)


def _change(scene: StillLife, pool: ObjectPool, random: np.random.Generator) -> tuple[str, StillLife]:
    """Change a thing, the order or the ground; return the sentence about it and the new scene."""
    new = _new_thing(scene, pool, random)
    kind = random.random()
    if kind < 0.4:
        number = int(random.integers(len(scene.things)))
        old = scene.things[number]
        things = (*scene.things[:number], new, *scene.things[number + 1 :])
        return f"In place of the {old.name} there is now {with_article(new.name)}.", replace(scene, things=things)
    if kind < 0.7 and scene.layout in ("row", "column"):
        first, second = scene.things
        sentence = f"The {first.name} and the {second.name} change places."
        return sentence, replace(scene, things=(second, first))
    colors = {thing.color for thing in scene.things}
    while True:
        ground = pool.sample_ground(random)
        if ground != scene.ground and not ground.colors & colors:
            return f"Now the same on {with_article(ground.description)}.", replace(scene, ground=ground)


def _new_thing(scene: StillLife, pool: ObjectPool, random: np.random.Generator) -> Thing:
    """Sample a thing that is not in the scene and has none of the ground's colors."""
    while True:
        thing = pool.sample_thing(random)
        names = {other.name for other in scene.things}
        if thing.name not in names and thing.color not in scene.ground.colors:
            return thing


def _image(scene: StillLife, side: int) -> Image:
    return Image(data=scene.to_jpeg(side), name="a still life")


def _pick(random: np.random.Generator, wordings: Sequence[str]) -> str:
    return wordings[int(random.integers(len(wordings)))]
