"""Which language a text is in, told by its commonest words.

A word list of seven languages that are written in Latin letters, and a look at the letters: enough
to tell a page of one from a page of another, not to tell two lines apart. A text of fewer than
`FEWEST_WORDS` words, or with hardly a common word in it (code, names, tables), is in no language.
"""

from __future__ import annotations

import re
import unicodedata

FEWEST_WORDS = 20
LEAST_SHARE = 0.08
"""Share of a text's words that are common ones, at least; running text has 0.2 to 0.5."""

COMMON: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to in is that it was for on are as with be this have from or by not",
        "de": "der die das und ist nicht ein eine zu den von mit sich auf dem des es auch als wie",
        "fr": "le la les de des et est un une du en que qui dans pour pas sur au ce il plus",
        "es": "el la los las de que y en un una es por con no para su se del al lo como",
        "it": "il lo la gli le di che e un una per non con del della sono da si come nel anche",
        "pt": "o a os as de que e do da em um uma para com não por se no na mais dos",
        "nl": "de het een van en is dat niet op te in zijn voor met aan er maar om ook als",
    }.items()
}

_WORD = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str:
    """The language of a text by its two letters, "other" for other scripts, "" where unsure.

    >>> language_of("the cat is on the mat and it is not for the dog that was in the house of " * 2)
    'en'
    """
    words = _WORD.findall(text.lower())
    if _mostly_other_letters("".join(words)):
        return "other"
    if len(words) < FEWEST_WORDS:
        return ""
    shares = {
        language: sum(word in common for word in words) / len(words)
        for language, common in COMMON.items()
    }
    best = max(shares, key=lambda language: shares[language])
    return best if shares[best] >= LEAST_SHARE else ""


def _mostly_other_letters(letters: str) -> bool:
    """Whether more than half of some letters are not Latin."""
    sample = letters[:2000]
    latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in sample)
    return len(sample) >= FEWEST_WORDS and latin * 2 < len(sample)
