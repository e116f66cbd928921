"""The demo's documents: a small subset of the embedded corpus, composed on plain backgrounds.

The held-out split is by caption, not by image: a held-out caption occurs in no training document of
any kind. Objects that the embedded corpus holds out occur in no training document either; they form
the test set of new objects.
"""

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
"""Pixels per side of the demo's images."""

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
"""Objects that are recognizable at 32 pixels: few, so that each is seen often enough in minutes."""

NUM_VARIANTS = 2
MAX_SHIFT = 1
"""Positions in which each training scene is rendered, and their distance from the center in pixels,
at most.
"""

HELD_OUT_EVERY = 8
"""One of this number of captions is held out."""

NUM_PAGES = 1200
NUM_GLOSSES = 600
MIN_GLOSS, MAX_GLOSS = 20, 80
"""Characters of the shortest and the longest gloss."""


@dataclass(frozen=True)
class SceneSplits:
    """The demo's objects and scenes."""

    objects: Mapping[str, PIL.Image.Image]
    train: Sequence[Scene]
    held_out: Sequence[Scene]
    """Scenes whose caption does not occur in training, but each of its words does."""

    new_objects: Sequence[Scene]
    """Scenes of objects that do not occur in training."""


def is_held_out(scene: Scene) -> bool:
    """Return whether a scene's caption is held out."""
    digest = hashlib.sha256(scene.caption.encode()).digest()
    return digest[0] % HELD_OUT_EVERY == 0


def load_scenes() -> SceneSplits:
    """Read the objects of the embedded corpus and return all scenes."""
    known = _objects("train")
    new = {name: image for name, image in _objects("held-out").items() if name not in known}
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


def limit_scenes(splits: SceneSplits, max_scenes: int) -> SceneSplits:
    """Return at most `max_scenes` of each split, evenly spaced; 0 returns all."""

    def limit(scenes: Sequence[Scene]) -> Sequence[Scene]:
        return scenes[:: max(1, len(scenes) // max_scenes)][:max_scenes] if max_scenes else scenes

    return SceneSplits(
        objects=splits.objects,
        train=limit(splits.train),
        held_out=limit(splits.held_out),
        new_objects=limit(splits.new_objects),
    )


class SceneRenderer:
    """Renders scenes, each several times with the object in slightly different positions.

    A scene rendered once is memorized; in several positions, generalizing over the caption pays.
    """

    def __init__(self, objects: Mapping[str, PIL.Image.Image]) -> None:
        self.objects = objects
        self._images: dict[tuple[Scene, int], Image] = {}

    def image(self, scene: Scene, variant: int = 0) -> Image:
        """Return the image of a scene as a document part, in one of `NUM_VARIANTS` positions."""
        if (scene, variant) not in self._images:
            digest = hashlib.sha256(f"{variant} {scene.caption}".encode()).digest()
            shift = tuple(byte % (2 * MAX_SHIFT + 1) - MAX_SHIFT for byte in digest[:2])
            image = draw_scene(scene, self.objects, SCENE_RESOLUTION, (shift[0], shift[1]))
            self._images[scene, variant] = Image(data=encode_fast_png(image))
        return self._images[scene, variant]

    def pair(self, scene: Scene, variant: int = 0) -> Document:
        """Return a scene as a text-image pair."""
        source = "shapes" if scene.color else "objects"
        document = scene_document(scene, source, self.image(scene, variant))
        return replace(document, id=f"{document.id}/{variant}")

    def pairs(self, scenes: Sequence[Scene]) -> Iterator[Document]:
        """Yield every scene in every position."""
        for variant in range(NUM_VARIANTS):
            yield from (self.pair(scene, variant) for scene in scenes)


def pretraining_documents(splits: SceneSplits, renderer: SceneRenderer, seed: int) -> Iterator[Document]:
    """Yield pages of two images, and plain text: the pre-training documents other than pairs."""
    random = np.random.default_rng([seed, 1])
    for number in range(NUM_PAGES):
        first, second = (splits.train[i] for i in random.integers(len(splits.train), size=2))
        variant = number % NUM_VARIANTS
        yield Document(
            id=f"pages/{number}",
            source="pages",
            content=(
                Text(page_opening(first.caption)),
                renderer.image(first, variant),
                Text(f"then, {second.caption}:"),
                renderer.image(second, variant),
            ),
        )
    yield from _glosses()


def _glosses() -> Iterator[Document]:
    """Yield short lines of the dictionary, each a document."""
    count = 0
    for document in load_embedded("text", "train"):
        if document.source != "wordnet":
            continue
        for line in document.text.splitlines():
            if MIN_GLOSS <= len(line) <= MAX_GLOSS and count < NUM_GLOSSES:
                yield Document(id=f"glosses/{count}", source="glosses", content=(Text(line),))
                count += 1


def conversations(splits: SceneSplits, renderer: SceneRenderer, seed: int) -> Iterator[Document]:
    """Yield conversations for fine-tuning, from templates and training scenes only.

    There are four kinds: generate an image for a caption, describe an image, show two objects one
    after the other, and answer a question in words.
    """
    random = np.random.default_rng([seed, 2])
    scenes = splits.train
    for number, scene in enumerate(scenes):
        caption, image = Text(scene.caption), renderer.image(scene, number % NUM_VARIANTS)
        yield _turn("draw", number, (Text(draw_prompt(scene.caption)),), (image,))
        yield _turn("describe", number, (image, Text(DESCRIBE_PROMPT)), (caption,))
        if number % 3 == 0:
            other = scenes[int(random.integers(len(scenes)))]
            prompt = (Text(show_prompt(scene, other)),)
            answer = (Text(f"{scene.caption}:"), image, Text(f"{other.caption}:"))
            yield _turn("show", number, prompt, (*answer, renderer.image(other)))
        if number % 6 == 0:
            yield _turn("ask", number, (image, Text("what colour is the ground?")), (
                Text(scene.ground),
            ))  # fmt: skip


DESCRIBE_PROMPT = "what is this?"


def draw_prompt(caption: str) -> str:
    """Return the prompt for an image."""
    return f"draw {caption}"


def page_opening(caption: str) -> str:
    """Return the beginning of a page of two images, which the model can continue."""
    return f"first, {caption}:"


def show_prompt(first: Scene, second: Scene) -> str:
    """Return the prompt for two images with their captions."""
    return f"show {first.caption} and {second.caption}"


def _turn(kind: str, number: int, prompt: tuple[Text | Image, ...], answer: tuple[Text | Image, ...]) -> Document:
    return Document(id=f"{kind}/{number}", source=kind, messages=(Turn("user", prompt), Turn("assistant", answer)))
