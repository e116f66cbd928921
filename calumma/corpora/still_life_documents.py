"""Documents of still lifes: pairs, questions, requests, edits, stories and refusals.

A document depends only on the seed and its number. Its source names its kind, so a mixture can
weight the kinds.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from calumma.corpora.still_life import COLORS, MEDIUM, OBJECTS, SIDE, StillLife, sample_still_life
from calumma.corpora.still_life_captions import (
    Question,
    choose,
    list_things,
    make_caption,
    make_questions,
    with_article,
)
from calumma.corpora.still_life_edits import sample_edit
from calumma.corpora.synthetic_scenes import SHAPES
from calumma.documents.document import Document, Image, Part, Text, Turn

STILL_LIFE_SHARES = {
    "pairs": 0.27,
    "draw": 0.19,
    "describe": 0.11,
    "ask": 0.18,
    "edit": 0.15,
    "chat": 0.04,
    "stories": 0.03,
    "refuse": 0.03,
}
"""Fractions of the kinds of documents."""

STILL_LIFE_TUNING_SHARES = {
    "pairs": 0.03,
    "draw": 0.16,
    "describe": 0.14,
    "ask": 0.3,
    "edit": 0.12,
    "conversation": 0.12,
    "stories": 0.08,
    "refuse": 0.05,
}
"""The same of documents for fine-tuning: conversations go on after an image."""

_LARGE = "large"
_LAYOUT_SHARES = {"single": 0.06, _LARGE: 0.31, "row": 0.12, "column": 0.11, "triple": 0.11, "corners": 0.14,
                  "count": 0.15}  # fmt: skip
"""Fractions of the layouts in documents. A large thing shares its cells with no other layout."""

_QUESTION_WEIGHTS = {"where": 3.0, "existence": 2.0, "relation check": 3.0, "count of": 2.0, "color": 2.0}
"""How much more often than others hard kinds of questions are asked."""

_REPEATED_KINDS = ("existence", "relation check", "count of")
_MAX_QUESTIONS = 12
_MAX_LONG_ANSWERS = 4

UNKNOWN_THINGS = (
    *("dinosaur", "piano", "castle", "dragon", "person", "dog", "computer", "mountain", "chair", "bridge"),
    *("horse", "robot", "pizza", "tiger", "spoon", "city", "shark", "ghost", "ladder", "zebra"),
    *("river", "trumpet", "cat", "lamp", "violin", "tractor", "pirate", "cloud", "key", "table"),
    *("lion", "spider", "book", "clock", "house", "tree", "fish", "bird", "flower", "boat", "car", "truck"),
    *("mouse", "rabbit", "frog", "snake", "bear", "wolf", "king", "knight", "farmer", "doctor", "garden"),
    *("island", "ocean", "beach", "street", "church", "tower", "wall", "door", "bottle", "glass", "plate"),
    *("cake", "bread", "cheese", "lemon", "grape", "potato", "onion", "carrot", "drum", "flute", "phone"),
)
"""Things that cannot be drawn, for refusals in training."""

HELD_OUT_UNKNOWN_THINGS = (
    *("elephant", "teapot", "lighthouse", "wizard", "bicycle", "camera", "volcano", "owl", "shoe", "violet"),
    *("helicopter", "desert", "monkey", "sofa", "hammer", "train", "queen", "forest", "window", "tomato"),
)
"""Things for refusals that training never mentions."""

DRAW_REQUESTS = ("Draw {}.", "Please draw {}.", "Show me {}.", "Paint {}.", "Can you draw {}?")
DESCRIBE_REQUESTS = ("What is in this picture?", "Describe the picture.", "What do you see?", "Caption this.")
_MORE_DRAW_REQUESTS = (
    *("Draw me {}.", "I would like to see {}.", "Make a picture of {}.", "A picture of {}, please."),
    *("Could you paint {}?", "Now draw {}.", "Can I see {}?"),
)
_MORE_DESCRIBE_REQUESTS = ("What does the picture show?", "Tell me what you see.", "Write a caption.")

_SHAPES = ", ".join(f"{shape}s" if shape != "cross" else "crosses" for shape in SHAPES)
_TALK = (
    ("What can you draw?", f"I draw {_SHAPES} and {len(OBJECTS)} objects such as a banana or a whale."),
    ("Which shapes do you know?", f"I know {_SHAPES}."),
    ("Which colors do you know?", f"I know {', '.join(COLORS)}."),
    ("Hello!", "Hello! Ask me to draw something, or show me a picture."),
    ("Who are you?", "I am a small model that reads and draws still lifes."),
    ("Thank you!", "You are welcome."),
)
"""Questions that need no image, with their answers."""


def refusal(thing: str) -> str:
    """Return the answer to a request for a thing that cannot be drawn."""
    return f"I cannot draw {with_article(thing)}. I know {len(SHAPES)} shapes and {len(OBJECTS)} objects."


def sentence(words: str) -> str:
    """Turn an instruction into a sentence.

    >>> sentence("make the circle red")
    'Make the circle red.'
    """
    return f"{words[0].upper()}{words[1:]}."


class StillLifeWriter:
    """Writes the documents of a seed."""

    def __init__(
        self,
        seed: int,
        side: int = SIDE,
        shares: Mapping[str, float] = STILL_LIFE_SHARES,
        *,
        step_by_step: bool = False,
    ) -> None:
        """Create a writer.

        Args:
            seed: of all documents.
            side: of images, pixels.
            shares: fractions of the kinds of documents.
            step_by_step: write the steps of a question before its answer, and the things of both images
                before each further image of a story.
        """
        self.seed = seed
        self.side = side
        self.shares = shares
        self._step_by_step = step_by_step
        self._kinds: dict[str, Callable[[StillLife, np.random.Generator], Document]] = {
            "pairs": self._pair,
            "draw": self._draw,
            "describe": self._describe,
            "ask": self._ask,
            "edit": self._edit,
            "chat": self._chat,
            "conversation": self._conversation,
            "stories": self._story,
            "refuse": self._refuse,
        }

    def document(self, number: int) -> Document:
        """Write the document of a number, from 0."""
        random = np.random.default_rng([self.seed, number])
        kind = str(random.choice(list(self.shares), p=list(self.shares.values())))
        scene = _sample_scene(random)
        document = self._kinds[kind](scene, random)
        return replace(
            document,
            id=f"still-lifes/{self.seed}/{number}",
            source=f"still-life-{kind}",
            license="CC0-1.0 AND MIT",
            attributes={
                "kind": kind,
                "things": "; ".join(thing.name for thing in scene.things),
                "layout": scene.layout,
                "background": scene.background,
            },
        )

    def captioned_scene(self, number: int) -> tuple[str, StillLife]:
        """Return the scene of a number with a complete caption, as the pairs of training have."""
        random = np.random.default_rng([self.seed, number, 2])
        scene = sample_still_life(random)
        return make_caption(scene, random, complete=True), scene

    def image_document(self, number: int) -> Document:
        """Write a document of one image without text, for training an image tokenizer.

        Single things have one more size than in other documents, so that the codes know more cells.
        """
        scene = sample_still_life(np.random.default_rng([self.seed, number, 1]))
        if scene.size == "small":
            scene = replace(scene, size=MEDIUM)
        return Document(id=f"still-lifes/{self.seed}/image-{number}", content=(self._image(scene),))

    def _image(self, scene: StillLife) -> Image:
        return Image(data=scene.to_png(self.side), name="a still life")

    def _pair(self, scene: StillLife, random: np.random.Generator) -> Document:
        return Document(id="", content=(Text(make_caption(scene, random)), self._image(scene)))

    def _draw(self, scene: StillLife, random: np.random.Generator) -> Document:
        return Document(id="", messages=self._drawing_turns(scene, random))

    def _drawing_turns(self, scene: StillLife, random: np.random.Generator) -> tuple[Turn, ...]:
        request = choose(random, (*DRAW_REQUESTS, *_MORE_DRAW_REQUESTS, "{}")).format(make_caption(scene, random))
        return _exchange((Text(request),), self._image(scene))

    def _describe(self, scene: StillLife, random: np.random.Generator) -> Document:
        request = choose(random, DESCRIBE_REQUESTS + _MORE_DESCRIBE_REQUESTS)
        parts: list[Part] = [self._image(scene), Text(request)]
        if random.random() < 0.3:
            parts.reverse()
        return Document(id="", messages=_exchange(tuple(parts), Text(make_caption(scene, random, wordings="plain"))))

    def _ask(self, scene: StillLife, random: np.random.Generator) -> Document:
        candidates = [question for _ in range(4) for question in make_questions(scene, random)]
        # Of a yes and a no the second would follow from the first, so these kinds may repeat an answer.
        keys = [(q.kind, q.text if q.kind in _REPEATED_KINDS else q.answer) for q in candidates]
        questions = list(dict(zip(keys, candidates, strict=True)).values())
        weights = np.array([_QUESTION_WEIGHTS.get(question.kind, 1.0) for question in questions])
        limit = _MAX_LONG_ANSWERS if self._step_by_step else _MAX_QUESTIONS
        number = min(len(questions), int(random.integers(1, limit + 1)))
        order = random.choice(len(questions), number, replace=False, p=weights / weights.sum())
        selected = [questions[n] for n in order]
        first: list[Part] = [self._image(scene), Text(selected[0].text)]
        if random.random() < 0.3:
            first.reverse()
        turns = _exchange(tuple(first), self._answer(selected[0]))
        for question in selected[1:]:
            turns += _exchange((Text(question.text),), self._answer(question))
        return Document(id="", messages=turns)

    def _answer(self, question: Question) -> Text:
        return Text(question.full_answer if self._step_by_step else question.answer)

    def _edit_turns(self, scene: StillLife, random: np.random.Generator, given: Image | None) -> tuple[Turn, ...]:
        """Write one or two edits, each of the image before it; an answer says what it draws."""
        turns: tuple[Turn, ...] = ()
        for _ in range(int(random.integers(1, 3))):
            edit = sample_edit(scene, random)
            if edit is not None:
                image = () if turns or given is None else (given,)
                says = Text(_list_change(scene, edit.after))
                turns += _exchange((*image, Text(sentence(edit.instruction))), says, self._image(edit.after))
                scene = edit.after
        return turns

    def _edit(self, scene: StillLife, random: np.random.Generator) -> Document:
        turns = self._edit_turns(scene, random, self._image(scene))
        return Document(id="", messages=turns) if turns else self._describe(scene, random)

    def _chat(self, scene: StillLife, random: np.random.Generator) -> Document:
        """Draw a scene, ask about it, and change it."""
        turns = self._drawing_turns(scene, random)
        question = choose(random, make_questions(scene, random))
        if random.random() < 0.7:
            turns += _exchange((Text(question.text),), self._answer(question))
        return Document(id="", messages=turns + self._edit_turns(scene, random, None))

    def _conversation(self, scene: StillLife, random: np.random.Generator) -> Document:
        """Draw two or three scenes in turn, with questions about the last image, and with edits of it."""
        turns: tuple[Turn, ...] = ()
        for _ in range(int(random.integers(2, 4))):
            turns += self._drawing_turns(scene, random)
            if random.random() < 0.4:
                question = choose(random, make_questions(scene, random))
                turns += _exchange((Text(question.text),), self._answer(question))
            if random.random() < 0.3:
                turns += self._edit_turns(scene, random, None)
            scene = _sample_scene(random)
        return Document(id="", messages=turns)

    def _story(self, scene: StillLife, random: np.random.Generator) -> Document:
        """Write a story of three to five images in which one thing changes at a time."""
        parts: list[Part] = [Text(f"First there is {make_caption(scene, random)}."), self._image(scene)]
        for _ in range(int(random.integers(2, 5))):
            edit = sample_edit(scene, random)
            if edit is not None:
                steps = f" {_list_change(scene, edit.after)}" if self._step_by_step else ""
                scene = edit.after
                parts += [Text(f"Then {edit.instruction}.{steps}"), self._image(scene)]
        return Document(id="", content=tuple(parts))

    def _refuse(self, scene: StillLife, random: np.random.Generator) -> Document:
        """Refuse to draw what the world has not, or talk without an image."""
        if random.random() < 0.3:
            question, answer = choose(random, _TALK)
            return Document(id="", messages=_exchange((Text(question),), Text(answer)))
        thing = choose(random, UNKNOWN_THINGS)
        request = choose(random, DRAW_REQUESTS + _MORE_DRAW_REQUESTS).format(with_article(thing))
        return Document(id="", messages=_exchange((Text(request),), Text(refusal(thing))))


def _sample_scene(random: np.random.Generator) -> StillLife:
    layout = str(random.choice(list(_LAYOUT_SHARES), p=list(_LAYOUT_SHARES.values())))
    scene = sample_still_life(random, "single" if layout == _LARGE else layout)
    return replace(scene, size=_LARGE) if layout == _LARGE else scene


def _list_change(before: StillLife, after: StillLife) -> str:
    return f"{list_things(before)}; now {list_things(after)} on {with_article(after.background)} background"


def _exchange(request: tuple[Part, ...], *answer: Part) -> tuple[Turn, ...]:
    return (Turn("user", request), Turn("assistant", answer))
