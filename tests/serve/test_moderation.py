"""Filters from packages, and a text that is held back until it has been looked at."""

from __future__ import annotations

import PIL.Image
import pytest

from calumma.errors import ConfigError
from calumma.serve.moderation import ModerationBuffer, load_content_filters
from tests.images import noise


class NoWord:
    """Lets no text with a word pass, and no image that is narrow."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.seen: list[str] = []

    def passes_text(self, text: str) -> bool:
        self.seen.append(text)
        return self.word not in text

    def passes_image(self, image: PIL.Image.Image) -> bool:
        return image.width > 8


def contains_idiot(text: str) -> float:
    return float("idiot" in text)


def test_abuse_does_not_pass_and_a_caption_does() -> None:
    (filter_,) = load_content_filters(["tests.serve.test_moderation:contains_idiot"])
    assert filter_.passes_text("a large red circle on a blue ground")
    assert not filter_.passes_text("a red circle\nyou fucking idiot")
    assert filter_.passes_text(" \n")
    assert filter_.passes_image(noise(0))


def test_noise_is_no_nudity() -> None:
    (filter_,) = load_content_filters(["nudity"])
    assert filter_.passes_image(noise(0, 64, 64))
    assert filter_.passes_text("anything")


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_content_filters(["virtue"])
    assert str(caught.value) == (
        "there is no filter 'virtue'; expected nudity, or package.module:function from a text to a "
        "score. Choose one, or remove --filter."
    )


def test_a_sentence_is_reported_when_it_is_whole_and_has_passed() -> None:
    filter_ = NoWord("bad")
    sieve = ModerationBuffer([filter_])
    result = [sieve.push(piece) for piece in ("One", " two. Th", "ree! F", "our")]
    assert result == ["", "One two.", " Three!", ""]
    assert sieve.flush() == " Four"
    assert filter_.seen == ["One two.", " Three!", " Four"]
    assert not sieve.is_blocked


def test_what_does_not_pass_is_not_reported_nor_is_anything_after_it() -> None:
    sieve = ModerationBuffer([NoWord("bad")])
    result = [sieve.push(piece) for piece in ("Good. A b", "ad one. ", "Good again. ")]
    assert result == ["Good.", "", ""]
    assert sieve.flush() == ""
    assert sieve.is_blocked


def test_a_text_without_sentences_is_looked_at_in_pieces() -> None:
    sieve = ModerationBuffer([NoWord("bad")])
    assert sieve.push("x" * 400) == ""
    assert sieve.push("y") == "x" * 400 + "y"


def test_without_filters_nothing_is_held_back() -> None:
    assert ModerationBuffer([]).push("any") == "any"
