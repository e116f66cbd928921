"""The demo's documents: a small part of the still lifes, small enough to be learned in minutes.

One or two small things, on backgrounds of four colors. The held-out split is by scene: a held-out
combination of things and background, and so its caption, occurs in no training document of any kind.
Half of the objects occur in no training document either; they form the test set of new objects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from calumma.corpora.embedded import load_embedded
from calumma.corpora.still_life import OBJECTS, SIDE, StillLife, StillLifeSplit, Thing, sample_still_life
from calumma.corpora.still_life_captions import choose, with_article
from calumma.documents.document import Document, Image, Text, Turn

BACKGROUNDS = ("white", "black", "yellow", "blue")
OBJECT_NAMES = OBJECTS[:12]
_WORDINGS = {"single": "{0}", "row": "{0} left of {1}", "column": "{0} above {1}"}
_LAYOUTS = ("single", "row", "column")

NUM_SCENES = 8000
NUM_HELD_OUT = 240
"""Different scenes of training, and held-out ones."""

NUM_PAGES = 1200
NUM_GLOSSES = 600
MIN_GLOSS, MAX_GLOSS = 20, 80
"""Characters of the shortest and the longest gloss."""


@dataclass(frozen=True)
class SceneSplits:
    """The demo's scenes."""

    train: Sequence[StillLife]
    held_out: Sequence[StillLife]
    """Scenes that do not occur in training, but each word of their captions does."""

    new_objects: Sequence[StillLife]
    """Scenes of objects that do not occur in training."""


def load_scenes() -> SceneSplits:
    """Return all scenes, which are the same for every seed."""
    return SceneSplits(
        train=_sample_scenes(NUM_SCENES, "train"),
        held_out=_sample_scenes(NUM_HELD_OUT, "combinations"),
        new_objects=[
            StillLife(background, "single", (Thing(name),), "small")
            for name in OBJECTS
            if name not in OBJECT_NAMES
            for background in BACKGROUNDS
        ],
    )


def _sample_scenes(count: int, split: StillLifeSplit) -> list[StillLife]:
    """Sample different scenes of a split, in an order that does not depend on `count`."""
    random = np.random.default_rng(0)
    scenes: dict[StillLife, None] = {}
    while len(scenes) < count:
        scene = sample_still_life(random, choose(random, _LAYOUTS), split)
        if is_in_demo(scene):
            scenes[scene] = None
    return list(scenes)


def is_in_demo(scene: StillLife) -> bool:
    """Return whether the demo's documents may show a scene."""
    are_known = all(thing.color or thing.kind in OBJECT_NAMES for thing in scene.things)
    return are_known and scene.background in BACKGROUNDS and scene.layout in _LAYOUTS and scene.size != "large"


def scene_caption(scene: StillLife) -> str:
    """Return the caption of a scene.

    >>> from calumma.corpora.still_life import Thing
    >>> scene_caption(StillLife("white", "row", (Thing("circle", "red"), Thing("banana"))))
    'a red circle left of a banana on a white background'
    """
    names = [with_article(thing.name) for thing in scene.things]
    return f"{_WORDINGS[scene.layout].format(*names)} on {with_article(scene.background)} background"


def limit_scenes(splits: SceneSplits, max_scenes: int) -> SceneSplits:
    """Return at most `max_scenes` of each split, evenly spaced; 0 returns all."""

    def limit(scenes: Sequence[StillLife]) -> Sequence[StillLife]:
        return scenes[:: max(1, len(scenes) // max_scenes)][:max_scenes] if max_scenes else scenes

    return SceneSplits(limit(splits.train), limit(splits.held_out), limit(splits.new_objects))


class SceneRenderer:
    """Renders scenes, each once."""

    def __init__(self, side: int = SIDE) -> None:
        self.side = side
        self._images: dict[StillLife, Image] = {}

    def image(self, scene: StillLife) -> Image:
        """Return the image of a scene as a document part, of `side` pixels."""
        if scene not in self._images:
            self._images[scene] = Image(data=scene.to_png(self.side))
        return self._images[scene]

    def pair(self, scene: StillLife) -> Document:
        """Return a scene as a text-image pair; its attributes are ground truth for evaluation."""
        first, caption = scene.things[0], scene_caption(scene)
        attributes = {"thing": first.kind, "ground": scene.background, "layout": scene.layout}
        if first.color and scene.layout == "single":
            attributes["colour"] = first.color
        source = "shapes" if all(thing.color for thing in scene.things) else "objects"
        return Document(
            id=f"{source}/{caption}", source=source, content=(Text(caption), self.image(scene)), attributes=attributes
        )


def pretraining_documents(splits: SceneSplits, renderer: SceneRenderer, seed: int) -> Iterator[Document]:
    """Yield pages of two images, and plain text: the pre-training documents other than pairs."""
    random = np.random.default_rng([seed, 1])
    for number in range(NUM_PAGES):
        first, second = (splits.train[i] for i in random.integers(len(splits.train), size=2))
        yield Document(
            id=f"pages/{number}",
            source="pages",
            content=(
                Text(page_opening(scene_caption(first))),
                renderer.image(first),
                Text(f"then, {scene_caption(second)}:"),
                renderer.image(second),
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
        caption, image = Text(scene_caption(scene)), renderer.image(scene)
        if number % 2:
            yield _turn("describe", number, (image, Text(DESCRIBE_PROMPT)), (caption,))
        else:
            yield _turn("draw", number, (Text(draw_prompt(caption.text)),), (image,))
        if number % 5 == 0:
            other = scenes[int(random.integers(len(scenes)))]
            prompt = (Text(show_prompt(scene, other)),)
            answer = (Text(f"{caption.text}:"), image, Text(f"{scene_caption(other)}:"))
            yield _turn("show", number, prompt, (*answer, renderer.image(other)))
        if number % 8 == 0:
            yield _turn("ask", number, (image, Text("what color is the background?")), (
                Text(scene.background),
            ))  # fmt: skip


DESCRIBE_PROMPT = "what is this?"


def draw_prompt(caption: str) -> str:
    """Return the prompt for an image."""
    return f"draw {caption}"


def page_opening(caption: str) -> str:
    """Return the beginning of a page of two images, which the model can continue."""
    return f"first, {caption}:"


def show_prompt(first: StillLife, second: StillLife) -> str:
    """Return the prompt for two images with their captions."""
    return f"show {scene_caption(first)} and {scene_caption(second)}"


def _turn(kind: str, number: int, prompt: tuple[Text | Image, ...], answer: tuple[Text | Image, ...]) -> Document:
    return Document(id=f"{kind}/{number}", source=kind, messages=(Turn("user", prompt), Turn("assistant", answer)))
