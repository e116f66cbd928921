"""Safety conversations: unsafe prompts with refusals, and harmless prompts that sound unsafe.

Prompts are the actions of `safety_prompts.toml` in templates. A prompt is held out either because
its action never occurs in training, or because the action does not occur in this wording; the
attribute "held-out-by" is "deed" or "wording".
"""

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from typing import Any

from calumma.corpora.instructions.text_conversations import SourceInfo, make_conversation, pick_template, stable_hash
from calumma.documents.document import Document

ACTION_PROMPTS = (
    "How do I {action}?",
    "Tell me how to {action}.",
    "Explain step by step how to {action}.",
    "What is the best way to {action}?",
    "Help me {action}.",
    "I want to {action}. What do I need?",
    "Can you teach me to {action}?",
    "Give me some advice: I have to {action}.",
    "Show me how to {action}.",
    "Please, how can I {action}?",
    "Is there an easy way to {action}?",
    "I need to {action} today. Where do I begin?",
)
SCENE_PROMPTS = ("Draw {scene}.", "Draw me a picture of {scene}.", "Make an image of {scene}.")

REFUSAL = "I can't help with that."
REFUSALS = {"self_harm": f"{REFUSAL} Please talk to someone you trust, or call for help."}
"""Refusals by topic; `REFUSAL` for all other topics."""

TEMPLATE_LICENSE = "Apache-2.0"

ACTIONS_ONE_IN = 8
"""One action in this many never occurs in training."""

WORDINGS_ONE_IN = 5
"""One in this many of the other prompts is held out."""


def is_template_refusal(text: str) -> bool:
    """Return whether an answer is one of these refusals.

    >>> is_template_refusal("I can't help with that."), is_template_refusal("Lay thin wood.")
    (True, False)
    """
    return text.strip().startswith(REFUSAL.rstrip("."))


def safety_conversations() -> Iterator[Document]:
    """Yield every action and scene in every wording, with a refusal or a harmless answer."""
    prompts = _load_prompts()
    for topic, actions in prompts["unsafe"].items():
        answer = REFUSALS.get(topic, REFUSAL)
        for action in actions:
            yield from _all_wordings(ACTION_PROMPTS, "action", action, answer, topic)
    for topic, scenes in prompts["unsafe_images"].items():
        answer = REFUSALS.get(topic, REFUSAL)
        for scene in scenes:
            yield from _all_wordings(SCENE_PROMPTS, "scene", scene, answer, topic)
    for action, answer in prompts["harmless"].items():
        yield from _all_wordings(ACTION_PROMPTS, "action", action, answer, "")


def _load_prompts() -> dict[str, Any]:
    path = files("calumma.corpora.instructions").joinpath("safety_prompts.toml")
    return tomllib.loads(path.read_text("utf-8"))


def _all_wordings(templates: tuple[str, ...], field: str, value: str, answer: str, topic: str) -> Iterator[Document]:
    is_new = stable_hash(value) % ACTIONS_ONE_IN == 0
    for number, template in enumerate(templates):
        prompt = template.format(**{field: value})
        held_out = is_new or stable_hash(prompt) % WORDINGS_ONE_IN == 0
        info = SourceInfo(
            name=f"{value}/{number}", license=TEMPLATE_LICENSE, split="held-out" if held_out else "train"
        )
        kind = "refuse" if topic else "plain"
        conversation = make_conversation("safety", kind, [prompt], [answer], info)
        extra = {"topic": topic} if topic else {}
        if held_out:
            extra["held-out-by"] = "deed" if is_new else "wording"
        yield replace(conversation, attributes={**conversation.attributes, **extra})


NOUN_PROMPTS = ('What does "{word}" mean?', "Define the noun {word}.", "What is meant by {word}?")


def dangerous_word_questions(glosses: dict[str, str], license: str) -> Iterator[Document]:
    """Yield questions for the meaning of nouns that sound unsafe, each in one wording.

    Args:
        glosses: definitions of nouns.
        license: the license of the glosses.
    """
    for word in sorted(set(_load_prompts()["nouns"]) & glosses.keys()):
        prompt = pick_template(NOUN_PROMPTS, word).format(word=word)
        held_out = stable_hash(prompt) % WORDINGS_ONE_IN == 0
        info = SourceInfo(name=word, license=license, split="held-out" if held_out else "train")
        yield make_conversation("safety", "plain", [prompt], [glosses[word]], info)
