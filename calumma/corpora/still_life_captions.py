"""Captions and questions of still lifes, in many wordings.

Some wordings are held out: they use known words in an order that training has not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from calumma.corpora.still_life import COLORS, LAYOUTS, THING_SIZES, StillLife, sample_thing
from calumma.corpora.synthetic_scenes import indefinite_article

NUMBER_WORDS = ("no", "one", "two", "three", "four")

_BACKGROUNDS = ("on {} background", "on {} background", "in front of {} background")
_HELD_OUT_BACKGROUNDS = ("with {} background",)

_ARRANGEMENTS: dict[str, tuple[str, ...]] = {
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
    scene: StillLife, random: np.random.Generator, *, held_out: bool = False, complete: bool = False
) -> str:
    """Write a caption of a still life in one of several wordings.

    Args:
        scene: the still life.
        random: the generator.
        held_out: use wordings that no training document has.
        complete: mention the size and the background, which an eighth of the captions omit.
    """
    background = ""
    if complete or held_out or random.random() >= 0.125:
        wordings: tuple[str, ...] = _HELD_OUT_BACKGROUNDS if held_out else _BACKGROUNDS
        background = choose(random, wordings).format(with_article(scene.background))
    if scene.is_count:
        count = f"{NUMBER_WORDS[len(scene.things)]} {scene.things[0].plural}"
        arrangement = choose(random, ("", *_COUNT_ARRANGEMENTS[scene.layout]))
        return " ".join(filter(None, (count, arrangement, background)))
    if scene.layout == "single":
        return _single_caption(scene, background, random, held_out=held_out, complete=complete)
    if scene.layout in _ARRANGEMENTS:
        arrangements = (_HELD_OUT_ARRANGEMENTS if held_out else _ARRANGEMENTS)[scene.layout]
        names = [with_article(thing.name) for thing in scene.things]
        return f"{choose(random, arrangements).format(*names)} {background}".strip()
    parts = [f"{with_article(thing.name)} {slot}" for slot, thing in scene.positions]
    if held_out or random.random() < 0.3:
        parts = [parts[number] for number in random.permutation(len(parts))]
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{listed} {background}".strip()


def _single_caption(
    scene: StillLife, background: str, random: np.random.Generator, *, held_out: bool, complete: bool
) -> str:
    name = scene.things[0].name
    if complete or random.random() >= 0.125:
        name = f"{scene.size} {name}"
    name = with_article(name)
    if held_out:
        return f"in the middle {name} {background}"
    with_position = f"{name} in the middle"
    if not background:
        return choose(random, (name, with_position))
    ground_first = f"{with_article(scene.background)} background with {name}"
    return choose(random, (f"{name} {background}", f"{with_position} {background}", ground_first))


@dataclass(frozen=True)
class Question:
    """A question about a still life, and its answer."""

    kind: str
    text: str
    answer: str
    num_options: int
    """Number of possible answers, for the accuracy of a guess."""


QUESTION_KINDS = (
    *("background", "count", "count of", "existence", "what", "where"),
    *("color", "size", "relation", "relation check"),
)

_QUESTIONS: dict[str, tuple[str, ...]] = {
    "background": ("What color is the background?", "Which color is the background?", "What is the background?"),
    "count": ("How many things are there?", "How many things do you see?"),
    "count of": ("How many {} are there?", "How many {} do you see?"),
    "existence": ("Is there {}?", "Do you see {}?"),
    "what": ("What is {}?", "What do you see {}?"),
    "where": ("Where is the {}?", "Where do you see the {}?"),
    "color": ("What color is the {}?", "Which color is the {}?"),
    "size": ("Is the {} large or small?", "What size is the {}?"),
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

    def ask(kind: str, subject: str, answer: str, num_options: int) -> Question:
        return Question(kind, choose(random, wordings[kind]).format(subject), answer, num_options)

    questions = [
        ask("background", "", scene.background, len(COLORS)),
        ask("count", "", NUMBER_WORDS[len(things)], 4),
        ask("existence", with_article(chosen.name), "yes" if chosen in things else "no", 2),
    ]
    if scene.is_count or random.random() < 0.3:
        subject = chosen if random.random() < 0.3 else thing
        questions.append(ask("count of", subject.plural, NUMBER_WORDS[things.count(subject)], 5))
    if num_things == len(things):
        questions.append(ask("what", slot, with_article(thing.name), 72))
        questions.append(ask("where", thing.name, slot, _NUM_SLOTS))
        if thing.color and sum(t.kind == thing.kind for t in things) == 1:
            questions.append(ask("color", thing.kind, thing.color, len(COLORS)))
    if scene.size:
        questions.append(ask("size", thing.name, scene.size, len(THING_SIZES)))
    if scene.layout in _DIRECTIONS and num_things == 2:
        questions += _relation_questions(scene, random)
    return questions


def _relation_questions(scene: StillLife, random: np.random.Generator) -> list[Question]:
    first, second = scene.things
    direction, opposite = _DIRECTIONS[scene.layout]
    pairs = [(first, direction, second, True), (second, opposite, first, True)]
    pairs += [(first, opposite, second, False), (second, direction, first, False)]
    answer, relation, reference, _ = choose(random, pairs[:2])
    subject, claimed, object_, is_true = choose(random, pairs)
    check = f"Is the {subject.name} {claimed} the {object_.name}?"
    return [
        Question("relation", f"What is {relation} the {reference.name}?", with_article(answer.name), 72),
        Question("relation check", check, "yes" if is_true else "no", 2),
    ]
