"""Names, prose and messages use the terms of the field; see `language.py` for the words."""

from __future__ import annotations

from tests.style.language import forbidden_words, words_of
from tests.style.tree import ROOT


def test_no_word_of_the_former_vocabulary_is_used() -> None:
    assert forbidden_words() == []
