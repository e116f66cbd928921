"""Captions and questions of still lifes, in many wordings.

Some wordings are held out: they use known words in an order that training has not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from calumma.corpora.still_life import COLORS, LAYOUTS, THING_SIZES, StillLife, Thing, sample_thing
from calumma.corpora.synthetic_scenes import indefinite_article

NUMBER_WORDS = ("no", "one", "two", "three", "four")

_PLAIN_BACKGROUNDS = ("{0} on {1} background", "{0} on {1} background", "{0} in front of {1} background")
_BACKGROUNDS = (
    *_PLAIN_BACKGROUNDS,
    *("{0} against {1} background", "{0} over {1} background", "{0} before {1} background"),
    *("{0}, all on {1} background", "{0}, the background is {2}", "{0}, and the background is {2}"),
    *("on {1} background {0}", "on {1} background, {0}", "in front of {1} background, {0}"),
    *("against {1} background {0}", "{1} background with {0}", "{1} background, and on it {0}"),
    *("{0} with {2} behind", "{0}, with {2} behind", "{0} with {2} all around", "{0} with {2} as the background"),
    *("{0} with {1} backdrop", "{0}, with {1} backdrop", "{0} with {2} in the background"),
)
_HELD_OUT_BACKGROUNDS = ("{0} with {1} background",)
"""{0} is replaced by the things, {1} by the color with its article, {2} by the color."""

_PLAIN_ARRANGEMENTS: dict[str, tuple[str, ...]] = {
    "row": (
        *("{0} left of {1}", "{1} right of {0}", "{0} to the left of {1}", "{1} to the right of {0}"),
        "{0} on the left and {1} on the right",
    ),
    "column": ("{0} above {1}", "{1} below {0}", "{1} under {0}", "{0} at the top and {1} at the bottom"),
    "triple": (
        *("{1} between {0} and {2}", "from left to right {0}, {1} and {2}"),
        "{0} on the left, {1} in the middle and {2} on the right",
    ),
}
_ARRANGEMENTS: dict[str, tuple[str, ...]] = {
    "row": (
        *_PLAIN_ARRANGEMENTS["row"],
        *("on the left {0} and on the right {1}", "on the right {1} and on the left {0}"),
        *("on the left {0}, on the right {1}", "on the right {1}, on the left {0}"),
        *("{0} with {1} on its right", "{1} with {0} on its left", "{0}, to its right {1}", "{1}, to its left {0}"),
        *("from left to right {0} and {1}", "from right to left {1} and {0}"),
        *("{0} on the left of {1}", "{1} on the right of {0}", "left {0}, right {1}", "right {1}, left {0}"),
        *("{0} is on the left and {1} is on the right", "{1} is on the right and {0} is on the left"),
    ),
    "column": (
        *_PLAIN_ARRANGEMENTS["column"],
        *("at the top {0} and at the bottom {1}", "at the bottom {1} and at the top {0}"),
        *("at the top {0}, at the bottom {1}", "at the bottom {1}, at the top {0}"),
        *("{0} with {1} below it", "{1} with {0} above it", "{0}, below it {1}", "{1}, above it {0}"),
        *("from top to bottom {0} and {1}", "from bottom to top {1} and {0}"),
        *("{0} over {1}", "{1} beneath {0}", "top {0}, bottom {1}", "bottom {1}, top {0}"),
        *("{0} is at the top and {1} is at the bottom", "{1} is at the bottom and {0} is at the top"),
    ),
    "triple": (
        *_PLAIN_ARRANGEMENTS["triple"],
        *("from right to left {2}, {1} and {0}", "{0} and {2} with {1} between them", "between {0} and {2} {1}"),
        "on the left {0}, in the middle {1} and on the right {2}",
        "in the middle {1}, on the left {0} and on the right {2}",
        "on the right {2}, in the middle {1} and on the left {0}",
        "{2} on the right, {1} in the middle and {0} on the left",
        "{0} on the left, {2} on the right and {1} in the middle",
        "{1} with {0} on its left and {2} on its right",
        "{1} is in the middle, {0} is on the left and {2} is on the right",
        "{2} is on the right, {1} is in the middle and {0} is on the left",
    ),
}
_HELD_OUT_ARRANGEMENTS: dict[str, tuple[str, ...]] = {
    "row": ("{1} on the right and {0} on the left",),
    "column": ("{1} at the bottom and {0} at the top",),
    "triple": ("{1} in the middle, {0} on the left and {2} on the right",),
}
_COUNT_ARRANGEMENTS = {
    "row": ("side by side", "next to each other"),
    "column": ("one above the other",),
    "triple": ("side by side", "in a row"),
    "corners": ("in the corners", "at the corners"),
}

_SINGLES = {
    "plain": ("{}", "{} in the middle"),
    "all": ("{}", "{} in the middle", "{} in the center", "in the center {}", "{} alone", "only {}"),
    "held-out": ("in the middle {}",),
}
_BACKGROUNDS_BY_WORDINGS = {"plain": _PLAIN_BACKGROUNDS, "all": _BACKGROUNDS, "held-out": _HELD_OUT_BACKGROUNDS}
_ARRANGEMENTS_BY_WORDINGS = {"plain": _PLAIN_ARRANGEMENTS, "all": _ARRANGEMENTS, "held-out": _HELD_OUT_ARRANGEMENTS}

Wordings = Literal["all", "plain", "held-out"]

_Option = TypeVar("_Option")


def arrangement_wordings(layout: str) -> tuple[str, ...]:
    """Return all wordings of a row, a column or a triple, the held-out ones too."""
    return _ARRANGEMENTS[layout] + _HELD_OUT_ARRANGEMENTS[layout]


def choose(random: np.random.Generator, options: Sequence[_Option]) -> _Option:
    """Return one of the options, each equally likely."""
    return options[int(random.integers(len(options)))]


def with_article(noun: str) -> str:
    """Add the indefinite article to a noun.

    >>> with_article("red circle"), with_article("orange square")
    ('a red circle', 'an orange square')
    """
    return f"{indefinite_article(noun)} {noun}"


def make_caption(
    scene: StillLife, random: np.random.Generator, *, wordings: Wordings = "all", complete: bool = False
) -> str:
    """Write a caption of a still life in one of several wordings.

    Args:
        scene: the still life.
        random: the generator.
        wordings: "all" of training, the "plain" ones, or "held-out" ones that training has not.
        complete: mention the size and the background, each of which a fifth of the captions omits; a
            tenth omits both.
    """
    is_complete = complete or wordings == "held-out"
    detail = 1.0 if is_complete else random.random()
    background = "{0}" if detail < 0.2 else choose(random, _BACKGROUNDS_BY_WORDINGS[wordings])
    things = _things_caption(scene, random, wordings, with_size=not 0.1 <= detail < 0.3)
    return background.format(things, with_article(scene.background), scene.background)


def _things_caption(scene: StillLife, random: np.random.Generator, wordings: Wordings, *, with_size: bool) -> str:
    """Write a caption without its background."""
    names = [with_article(thing.name) for thing in scene.things]
    if scene.is_count:
        count = f"{NUMBER_WORDS[len(scene.things)]} {scene.things[0].plural}"
        return f"{count} {choose(random, ('', *_COUNT_ARRANGEMENTS[scene.layout]))}".strip()
    if scene.layout == "single":
        name = with_article(f"{scene.size} {scene.things[0].name}") if with_size else names[0]
        return choose(random, _SINGLES[wordings]).format(name)
    if scene.layout in _ARRANGEMENTS:
        return choose(random, _ARRANGEMENTS_BY_WORDINGS[wordings][scene.layout]).format(*names)
    is_position_first = wordings == "all" and random.random() < 0.3
    parts = [
        f"{slot} {name}" if is_position_first else f"{name} {slot}"
        for name, (slot, _) in zip(names, scene.positions, strict=True)
    ]
    if wordings == "held-out" or random.random() < 0.4:
        parts = [parts[number] for number in random.permutation(len(parts))]
    return _enumerate(parts)


def _enumerate(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def list_things(scene: StillLife, found: Sequence[Thing] = ()) -> str:
    """List the things of a scene, place by place, as answers do before an edited image.

    Args:
        scene: the still life.
        found: things that are called "it".
    """
    names = ["it" if t in found else with_article(f"{scene.size} {t.name}".strip()) for t in scene.things]
    return _enumerate([f"{name} {slot}" for name, (slot, _) in zip(names, scene.positions, strict=True)])


@dataclass(frozen=True)
class Question:
    """A question about a still life, and its answer."""

    kind: str
    text: str
    answer: str
    num_options: int
    """Number of possible answers, for the accuracy of a guess."""

    steps: str = ""
    """All things, and again with those of the question as "it"; empty for kinds that need no search.

    This is the form of an edit, which learns to find a thing by its name.
    """

    @property
    def full_answer(self) -> str:
        """The steps and the answer.

        "a bell on the left and a star on the right; now a bell on the left and it on the right: on the
        right" answers "Where is the star?".
        """
        return f"{self.steps}: {self.answer}" if self.steps else self.answer

    def accepts(self, text: str) -> bool:
        """Return whether a text answers correctly; steps before the last colon do not count."""
        return text.strip(" .").lower().rpartition(": ")[2] == self.answer


QUESTION_KINDS = (
    *("background", "count", "count of", "existence", "what", "where"),
    *("color", "size", "relation", "relation check"),
)

_QUESTIONS: dict[str, tuple[str, ...]] = {
    "background": (
        *("What color is the background?", "Which color is the background?", "What is the background?"),
        *("What is the color of the background?", "The background has which color?"),
        "Name the color of the background.",
    ),
    "count": (
        *("How many things are there?", "How many things do you see?", "How many things are in the picture?"),
        *("Count the things.", "Tell me the number of things."),
    ),
    "count of": (
        *("How many {} are there?", "How many {} do you see?", "How many {} are in the picture?"),
        *("Count the {}.", "Of {}, how many are there?"),
    ),
    "existence": (
        *("Is there {}?", "Do you see {}?", "Can you see {}?", "Does the picture have {}?"),
        "Is {} in the picture?",
    ),
    "what": (
        *("What is {}?", "What do you see {}?", "What can you see {}?", "Name the thing {}."),
        "Which thing do you see {}?",
    ),
    "where": (
        *("Where is the {}?", "Where do you see the {}?", "Where in the picture is the {}?", "The {} is where?"),
        *("Where can you see the {}?", "Name the place of the {}."),
    ),
    "color": (
        *("What color is the {}?", "Which color is the {}?", "What is the color of the {}?"),
        *("Which color has the {}?", "Name the color of the {}."),
    ),
    "size": (
        *("Is the {} large or small?", "What size is the {}?", "How large is the {}?"),
        *("What is the size of the {}?", "Name the size of the {}."),
    ),
    "relation": ("What is {}?", "What do you see {}?", "What can you see {}?", "Name the thing {}."),
    "relation check": ("Is the {}?", "Do you see the {}?", "Can you see the {}?"),
}
_HELD_OUT_QUESTIONS: dict[str, tuple[str, ...]] = {
    "background": ("Which is the color of the background?",),
    "count": ("What is the number of things?",),
    "count of": ("What is the number of {}?",),
    "existence": ("Is {} there?",),
    "what": ("Which thing is {}?",),
    "where": ("Do you see where the {} is?",),
    "color": ("Which is the color of the {}?",),
    "size": ("Is the {} small or large?",),
    "relation": ("Which thing is {}?",),
    "relation check": ("Does the picture have the {}?",),
}
_DIRECTIONS = {"row": ("left of", "right of"), "column": ("above", "below")}
_NUM_SLOTS = len({slot for slots in LAYOUTS.values() for slot, _, _ in slots})


def make_questions(scene: StillLife, random: np.random.Generator, *, held_out: bool = False) -> list[Question]:
    """Write one question of every kind that the scene allows, about things chosen at random."""
    slot, thing = choose(random, scene.positions)
    things = scene.things
    num_things = len({*things})
    other = sample_thing(random, scene.background)
    chosen = thing if random.random() < 0.5 else other
    wordings = _HELD_OUT_QUESTIONS if held_out else _QUESTIONS

    def ask(kind: str, subject: str, answer: str, num_options: int, found: Sequence[Thing] | None = None) -> Question:
        steps = "" if found is None else _steps(scene, found)
        return Question(kind, choose(random, wordings[kind]).format(subject), answer, num_options, steps)

    questions = [
        ask("background", "", scene.background, len(COLORS)),
        ask("count", "", NUMBER_WORDS[len(things)], 4),
        ask("existence", with_article(chosen.name), "yes" if chosen in things else "no", 2, [chosen]),
    ]
    if scene.is_count or random.random() < 0.3:
        subject = chosen if random.random() < 0.3 else thing
        questions.append(ask("count of", subject.plural, NUMBER_WORDS[things.count(subject)], 5, [subject]))
    if num_things == len(things):
        questions.append(ask("what", slot, with_article(thing.name), 72))
        questions.append(ask("where", thing.name, slot, _NUM_SLOTS, [thing]))
        if thing.color and sum(t.kind == thing.kind for t in things) == 1:
            questions.append(ask("color", thing.kind, thing.color, len(COLORS), [thing]))
    if scene.size:
        questions.append(ask("size", thing.name, scene.size, len(THING_SIZES)))
    if scene.layout in _DIRECTIONS and num_things == 2:
        questions += _relation_questions(scene, random, wordings)
    return questions


def _steps(scene: StillLife, found: Sequence[Thing]) -> str:
    return f"{list_things(scene)}; now {list_things(scene, found)}"


def _relation_questions(
    scene: StillLife, random: np.random.Generator, wordings: Mapping[str, tuple[str, ...]]
) -> list[Question]:
    first, second = scene.things
    direction, opposite = _DIRECTIONS[scene.layout]
    pairs = [(first, direction, second, True), (second, opposite, first, True)]
    pairs += [(first, opposite, second, False), (second, direction, first, False)]
    answer, relation, reference, _ = choose(random, pairs[:2])
    subject, claimed, object_, is_true = choose(random, pairs)
    what = choose(random, wordings["relation"]).format(f"{relation} the {reference.name}")
    check = choose(random, wordings["relation check"]).format(f"{subject.name} {claimed} the {object_.name}")
    return [
        Question("relation", what, with_article(answer.name), 72),
        Question("relation check", check, "yes" if is_true else "no", 2, _steps(scene, [subject])),
    ]
