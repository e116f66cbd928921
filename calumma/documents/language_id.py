"""Language identification of running text with py3langid's model, which the package contains."""

import re
from functools import lru_cache
from typing import Any

MIN_WORDS = 20
"""Texts with fewer words are not identified: on single captions the model guesses at random."""

MIN_PROBABILITY = 0.5
"""Texts with a less probable language (code, lists of names, tables) are not identified."""

_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+")
"""A run of letters; in scripts written without spaces, one letter."""

_NO_LANGUAGE = "zxx"


def identify_language(text: str) -> str:
    """Return the ISO 639 code of a text's language, such as "en"; "" if the text is too short.

    >>> identify_language("the cat is on the mat and it is not for the dog of the house " * 2)
    'en'
    """
    words = _WORD.finditer(text)
    if sum(1 for _ in zip(range(MIN_WORDS), words, strict=False)) < MIN_WORDS:
        return ""
    language, probability = _identifier().classify(text)
    return "" if language == _NO_LANGUAGE or probability < MIN_PROBABILITY else str(language)


def language_codes() -> list[str]:
    """Return the codes that `identify_language` may return, sorted."""
    return sorted({*map(str, _identifier().labels)} - {_NO_LANGUAGE})


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
