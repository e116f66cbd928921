"""The demo's documents: a narrow, clean slice of the embedded corpus, composed on plain grounds.

What is held out is decided by captions, not by pictures: a caption that is held out never occurs
in training, in no document of any kind. Objects whose own caption group the embedded corpus
holds out occur in none either; they make the hard set of things never seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import PIL.Image

from calumma.corpora.embedded import load_embedded
from calumma.corpora.synthetic_scenes import (
    Scene,
    draw_scene,
    encode_fast_png,
    object_scenes,
    scene_document,
    shape_scenes,
)
from calumma.documents.document import Document, Image, Text, Turn

SCENE_RESOLUTION = 32
"""Pixels to a side of the demo's pictures."""

EMOJI_SOURCE = "fluent-flat"
_THINGS = """
avocado banana blueberries broccoli carrot cherries coconut eggplant grapes lemon mango melon
mushroom onion peach pear pineapple strawberry tangerine tomato watermelon
bread butter cookie croissant cupcake doughnut egg hamburger pancakes pizza popcorn sandwich taco
bear bird butterfly cat chicken cow dog dolphin duck elephant fish flamingo fox frog giraffe
hedgehog jellyfish koala lion monkey octopus owl panda parrot penguin pig rabbit raccoon shark
snail swan tiger turtle unicorn whale wolf zebra
blossom bouquet cactus rose seedling shamrock sunflower tulip
airplane anchor ambulance automobile bus helicopter rocket sailboat taxi tractor train
"""
OBJECT_NAMES = frozenset(_THINGS.split())
"""What a person would ask for, and what can be told apart at 32 pixels: a narrow slice, so that
each thing is seen often enough in a few minutes."""

NUM_VARIANTS = 2
MAX_SHIFT = 1
"""Places in which each training scene is drawn, and pixels from the middle at most."""

HELD_OUT_EVERY = 8
"""One caption in so many is held out."""

NUM_PAGES = 1200
NUM_GLOSSES = 600
MIN_GLOSS, MAX_GLOSS = 20, 80
"""Letters of the shortest and the longest gloss taken."""


@dataclass(frozen=True)
class SceneSplits:
    """The demo's objects and scenes."""

    objects: Mapping[str, PIL.Image.Image]
    train: Sequence[Scene]
    held_out: Sequence[Scene]
    """Scenes whose caption never occurs in training; each of their words does."""

    new_objects: Sequence[Scene]
    """Scenes of objects that never occur in training."""


def is_held_out(scene: Scene) -> bool:
    """Whether a scene's caption falls to the held-out side."""
    digest = hashlib.sha256(scene.caption.encode()).digest()
    return digest[0] % HELD_OUT_EVERY == 0


def load_scenes() -> SceneSplits:
    """Read the objects out of the embedded corpus and lay out all scenes."""
    known = _objects("train")
    new = {name: picture for name, picture in _objects("held-out").items() if name not in known}
    scenes = [*shape_scenes(), *object_scenes(list(known))]
    return SceneSplits(
        objects=known | new,
        train=[scene for scene in scenes if not is_held_out(scene)],
        held_out=[scene for scene in scenes if is_held_out(scene)],
        new_objects=list(object_scenes(list(new))),
    )


def _objects(split: Literal["train", "held-out"]) -> dict[str, PIL.Image.Image]:
    objects: dict[str, PIL.Image.Image] = {}
    for document in load_embedded("emoji", split):
        name = document.attributes.get("caption", "")
        if document.source == EMOJI_SOURCE and name in OBJECT_NAMES:
            objects[name] = document.images[0].open().convert("RGBA")
    return dict(sorted(objects.items()))


def limit_scenes(chosen: SceneSplits, most: int) -> SceneSplits:
    """At most so many scenes of each kind, evenly taken; 0 takes all."""

    def some(scenes: Sequence[Scene]) -> Sequence[Scene]:
        return scenes[:: max(1, len(scenes) // most)][:most] if most else scenes

    return SceneSplits(
        objects=chosen.objects,
        train=some(chosen.train),
        held_out=some(chosen.held_out),
        new_objects=some(chosen.new_objects),
    )


class SceneRenderer:
    """Draws scenes, each several times with the thing a little elsewhere.

    Drawn once only, a picture is learnt by heart; drawn in several places, it pays to know what
    the words mean.
    """

    def __init__(self, objects: Mapping[str, PIL.Image.Image]) -> None:
        self.objects = objects
        self._drawn: dict[tuple[Scene, int], Image] = {}

    def image(self, scene: Scene, variant: int = 0) -> Image:
        """The picture of a scene as a part of a document, in one of `VARIANTS` places."""
        if (scene, variant) not in self._drawn:
            digest = hashlib.sha256(f"{variant} {scene.caption}".encode()).digest()
            shift = tuple(byte % (2 * MAX_SHIFT + 1) - MAX_SHIFT for byte in digest[:2])
            picture = draw_scene(scene, self.objects, SCENE_RESOLUTION, (shift[0], shift[1]))
            self._drawn[scene, variant] = Image(data=encode_fast_png(picture))
        return self._drawn[scene, variant]

    def pair(self, scene: Scene, variant: int = 0) -> Document:
        """A scene as an image-text pair."""
        source = "shapes" if scene.color else "objects"
        document = scene_document(scene, source, self.image(scene, variant))
        return replace(document, id=f"{document.id}/{variant}")

    def pairs(self, scenes: Sequence[Scene]) -> Iterator[Document]:
        """Every scene in every place."""
        for variant in range(NUM_VARIANTS):
            yield from (self.pair(scene, variant) for scene in scenes)


def pretraining_documents(
    chosen: SceneSplits, painter: SceneRenderer, seed: int
) -> Iterator[Document]:
    """Pages of two pictures, and plain text: what is learnt from beside the pairs."""
    random = np.random.default_rng([seed, 1])
    for number in range(NUM_PAGES):
        first, second = (chosen.train[i] for i in random.integers(len(chosen.train), size=2))
        variant = number % NUM_VARIANTS
        yield Document(
            id=f"pages/{number}",
            source="pages",
            content=(
                Text(page_opening(first.caption)),
                painter.image(first, variant),
                Text(f"then, {second.caption}:"),
                painter.image(second, variant),
            ),
        )
    yield from _glosses()


def _glosses() -> Iterator[Document]:
    """Short lines of the dictionary, each a document."""
    taken = 0
    for document in load_embedded("text", "train"):
        if document.source != "wordnet":
            continue
        for line in document.text.splitlines():
            if MIN_GLOSS <= len(line) <= MAX_GLOSS and taken < NUM_GLOSSES:
                yield Document(id=f"glosses/{taken}", source="glosses", content=(Text(line),))
                taken += 1


def conversations(chosen: SceneSplits, painter: SceneRenderer, seed: int) -> Iterator[Document]:
    """Conversations for fine-tuning, from training scenes only, by templates.

    Four kinds: draw a caption, describe a picture, show two things one after the other, and
    answer in words.
    """
    random = np.random.default_rng([seed, 2])
    scenes = chosen.train
    for number, scene in enumerate(scenes):
        caption, image = Text(scene.caption), painter.image(scene, number % NUM_VARIANTS)
        yield _turn("draw", number, (Text(draw_prompt(scene.caption)),), (image,))
        yield _turn("describe", number, (image, Text(DESCRIBE_PROMPT)), (caption,))
        if number % 3 == 0:
            other = scenes[int(random.integers(len(scenes)))]
            asked = (Text(show_prompt(scene, other)),)
            shown = (Text(f"{scene.caption}:"), image, Text(f"{other.caption}:"))
            yield _turn("show", number, asked, (*shown, painter.image(other)))
        if number % 6 == 0:
            yield _turn("ask", number, (image, Text("what colour is the ground?")), (
                Text(scene.ground),
            ))  # fmt: skip


DESCRIBE_PROMPT = "what is this?"


def draw_prompt(caption: str) -> str:
    """How the demo asks for a picture."""
    return f"draw {caption}"


def page_opening(caption: str) -> str:
    """How a page of two pictures begins; the model can go on from it."""
    return f"first, {caption}:"


def show_prompt(first: Scene, second: Scene) -> str:
    """How the demo asks for two pictures with their captions."""
    return f"show {first.caption} and {second.caption}"


def _turn(
    kind: str, number: int, prompt: tuple[Text | Image, ...], answer: tuple[Text | Image, ...]
) -> Document:
    return Document(
        id=f"{kind}/{number}",
        source=kind,
        messages=(Turn("user", prompt), Turn("assistant", answer)),
    )
