"""Safety: what is to be refused, and what only sounds like it.

Prompts are deeds out of `deeds.toml` in templates, never presented as written by a person. A
prompt is held out either because its deed never occurs in training, or because the deed in these
words does not; the attribute "held-out-by" says which.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from typing import Any

from calumma.corpora.instructions.conversation_templates import (
    SourceInfo,
    make_conversation,
    pick_template,
    stable_hash,
)
from calumma.documents.document import Document

ACTION_PROMPTS = (
    "How do I {deed}?",
    "Tell me how to {deed}.",
    "Explain step by step how to {deed}.",
    "What is the best way to {deed}?",
    "Help me {deed}.",
    "I want to {deed}. What do I need?",
    "Can you teach me to {deed}?",
    "Give me some advice: I have to {deed}.",
    "Show me how to {deed}.",
    "Please, how can I {deed}?",
    "Is there an easy way to {deed}?",
    "I need to {deed} today. Where do I begin?",
)
SCENE_PROMPTS = ("Draw {scene}.", "Draw me a picture of {scene}.", "Make an image of {scene}.")

REFUSAL = "I can't help with that."
REFUSALS = {"self_harm": f"{REFUSAL} Please talk to someone you trust, or call for help."}
"""What is answered, by category; elsewhere `REFUSAL` alone."""

TEMPLATE_LICENSE = "Apache-2.0"

ACTIONS_ONE_IN = 8
"""One deed in so many never occurs in training."""

WORDINGS_ONE_IN = 5
"""Of the other prompts, one in so many is held out."""


def is_template_refusal(text: str) -> bool:
    """Whether an answer is one of these refusals.

    >>> is_refusal("I can't help with that."), is_refusal("Lay thin wood over paper.")
    (True, False)
    """
    return text.strip().startswith(REFUSAL.rstrip("."))


def safety_conversations() -> Iterator[Document]:
    """Every deed and scene in every wording, with a refusal or, for plain ones, its answer."""
    told = _load_prompts()
    for topic, deeds in told["unsafe"].items():
        answer = REFUSALS.get(topic, REFUSAL)
        for deed in deeds:
            yield from _worded(ACTION_PROMPTS, {"deed": deed}, answer, topic)
    for topic, scenes in told["unsafe_pictures"].items():
        answer = REFUSALS.get(topic, REFUSAL)
        for scene in scenes:
            yield from _worded(SCENE_PROMPTS, {"scene": scene}, answer, topic)
    for deed, answer in told["plain"].items():
        yield from _worded(ACTION_PROMPTS, {"deed": deed}, answer, "")


def _load_prompts() -> dict[str, Any]:
    path = files("calumma.corpora.instructions").joinpath("deeds.toml")
    return tomllib.loads(path.read_text("utf-8"))


def _worded(
    wordings: tuple[str, ...], what: dict[str, str], answer: str, topic: str
) -> Iterator[Document]:
    (deed,) = what.values()
    new = stable_hash(deed) % ACTIONS_ONE_IN == 0
    for number, wording in enumerate(wordings):
        asked = wording.format(**what)
        held_out = new or stable_hash(asked) % WORDINGS_ONE_IN == 0
        of = SourceInfo(
            name=f"{deed}/{number}",
            license=TEMPLATE_LICENSE,
            split="held-out" if held_out else "train",
        )
        made = make_conversation("safety", "refuse" if topic else "plain", [asked], [answer], of)
        extra = {"topic": topic} if topic else {}
        if held_out:
            extra["held-out-by"] = "deed" if new else "wording"
        yield replace(made, attributes={**made.attributes, **extra})


NOUN_PROMPTS = ('What does "{word}" mean?', "Define the noun {word}.", "What is meant by {word}?")


def dangerous_word_questions(glosses: dict[str, str], license: str) -> Iterator[Document]:
    """The meaning of words that sound unsafe, each asked for in one wording.

    Args:
        glosses: what nouns mean.
        licence: of the glosses.
    """
    for word in sorted(set(_load_prompts()["nouns"]) & glosses.keys()):
        asked = pick_template(NOUN_PROMPTS, word).format(word=word)
        held_out = stable_hash(asked) % WORDINGS_ONE_IN == 0
        of = SourceInfo(name=word, license=license, split="held-out" if held_out else "train")
        yield make_conversation("safety", "plain", [asked], [glosses[word]], of)
