"""Caption groups: the concept of a caption, and the split into training and held-out concepts.

Several emoji families have images of one concept under similar names. All images of a concept are
in the same split, so that evaluation on held-out concepts is not contaminated.
"""

import re
from typing import Literal

from calumma.files import fingerprint

Split = Literal["train", "held-out"]

HELD_OUT_ONE_IN = 20
"""One group in this many is held out: 5 %."""

SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
"""The skin tones of Unicode, in the order of the characters U+1F3FB to U+1F3FF."""

_SKIN_TONE = re.compile(r"[,:]?\s*\b(?:medium-light|medium-dark|light|medium|dark) skin tone\b")


def collapse_whitespace(text: str) -> str:
    """Replace every run of white space by one space, and strip both ends."""
    return " ".join(text.split())


def remove_skin_tone(caption: str) -> str:
    """Remove the names of skin tones from a caption.

    >>> remove_skin_tone("woman, medium-dark skin tone, red hair")
    'woman, red hair'
    """
    return collapse_whitespace(_SKIN_TONE.sub("", caption))


def normalize_caption(caption: str) -> str:
    """Remove what does not change the concept: case, punctuation, articles, skin tone.

    >>> normalize_caption("The Waving Hand: dark skin tone")
    'waving hand'
    """
    words = re.sub(r"[\W_]+", " ", remove_skin_tone(caption.lower())).split()
    return " ".join(word for word in words if word not in ("a", "an", "the")) or caption.lower()


def caption_group(caption: str) -> str:
    """Return the group of a caption: twelve hex digits of the normalized caption."""
    return fingerprint(normalize_caption(caption))


def group_split(group: str) -> Split:
    """Return the split of a group, which depends only on the group."""
    return "held-out" if int(group, 16) % HELD_OUT_ONE_IN == 0 else "train"
