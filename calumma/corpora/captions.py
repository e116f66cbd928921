"""Captions: what belongs to one concept, and which concepts are held out.

Pictures of one thing come from several families under nearly one name. A concept is either
trained on or held out in all of them, or the held-out figures would be flattered.
"""

from __future__ import annotations

import re
from typing import Literal

from calumma.files import fingerprint

Split = Literal["train", "held-out"]

HELD_OUT_ONE_IN = 20
"""One group of this many is held out: 5 %."""

SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
"""The skin tones of Unicode, in the order of the characters U+1F3FB to U+1F3FF."""

_SKIN_TONE = re.compile(r"[,:]?\s*\b(?:medium-light|medium-dark|light|medium|dark) skin tone\b")


def collapse_whitespace(text: str) -> str:
    """Put every run of white space as one space, and none at the ends."""
    return " ".join(text.split())


def remove_skin_tone(caption: str) -> str:
    """Leave out the skin tones that a caption names.

    >>> without_tone("woman, medium-dark skin tone, red hair")
    'woman, red hair'
    """
    return collapse_whitespace(_SKIN_TONE.sub("", caption))


def normalize_caption(caption: str) -> str:
    """Fold what does not change the concept: case, punctuation, articles, skin tone.

    >>> normalised("The Waving Hand: dark skin tone")
    'waving hand'
    """
    words = re.sub(r"[\W_]+", " ", remove_skin_tone(caption.lower())).split()
    return " ".join(word for word in words if word not in ("a", "an", "the")) or caption.lower()


def caption_group(caption: str) -> str:
    """The group of a caption: twelve hex digits that equal captions share."""
    return fingerprint(normalize_caption(caption))


def group_split(group: str) -> Split:
    """Whether a group is held out; decided by the group alone, so it never changes."""
    return "held-out" if int(group, 16) % HELD_OUT_ONE_IN == 0 else "train"
