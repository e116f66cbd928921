"""Content filters, and streamed text that is withheld until it has passed."""

import PIL.Image
import pytest

from calumma.errors import ConfigError
from calumma.serve.moderation import ModerationBuffer, load_content_filters
from tests.images import noise


class NoWord:
    """Blocks texts with a word, and narrow images."""

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


def test_a_scorer_blocks_abuse_and_passes_a_caption() -> None:
    (filter_,) = load_content_filters(["tests.serve.test_moderation:contains_idiot"])
    assert filter_.passes_text("a large red circle on a blue ground")
    assert not filter_.passes_text("a red circle\nyou fucking idiot")
    assert filter_.passes_text(" \n")
    assert filter_.passes_image(noise(0))


def test_noise_passes_the_nudity_filter() -> None:
    (filter_,) = load_content_filters(["nudity"])
    assert filter_.passes_image(noise(0, 64, 64))
    assert filter_.passes_text("anything")


def test_an_unknown_filter_is_rejected() -> None:
    with pytest.raises(ConfigError) as caught:
        load_content_filters(["virtue"])
    assert str(caught.value) == (
        "there is no content filter 'virtue'; expected nudity, or package.module:function from a "
        "text to a score. Choose one, or remove --content-filter."
    )


def test_a_sentence_is_emitted_once_it_is_complete_and_has_passed() -> None:
    filter_ = NoWord("bad")
    buffer = ModerationBuffer([filter_])
    result = [buffer.push(text) for text in ("One", " two. Th", "ree! F", "our")]
    assert result == ["", "One two.", " Three!", ""]
    assert buffer.flush() == " Four"
    assert filter_.seen == ["One two.", " Three!", " Four"]
    assert not buffer.is_blocked


def test_a_blocked_sentence_and_all_after_it_are_withheld() -> None:
    buffer = ModerationBuffer([NoWord("bad")])
    result = [buffer.push(text) for text in ("Good. A b", "ad one. ", "Good again. ")]
    assert result == ["Good.", "", ""]
    assert buffer.flush() == ""
    assert buffer.is_blocked


def test_a_text_without_sentences_is_checked_in_chunks() -> None:
    buffer = ModerationBuffer([NoWord("bad")])
    assert buffer.push("x" * 400) == ""
    assert buffer.push("y") == "x" * 400 + "y"


def test_without_filters_nothing_is_withheld() -> None:
    assert ModerationBuffer([]).push("any") == "any"
