"""Stop words, however the text is cut into pieces."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.serve.stops import StopWords


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), max_size=30),
)
@settings(max_examples=200, deadline=None)
def test_what_is_told_is_the_text_up_to_the_first_stop_word(
    text: str, words: list[str], cuts: list[int]
) -> None:
    watch, told, rest = StopWords(words), "", text
    for cut in [*cuts, len(text)]:
        told += watch.hear(rest[:cut])
        rest = rest[cut:]
    told += watch.flush()
    found = {word: text.find(word) for word in words if word in text}
    assert watch.found is bool(found)
    if not found:
        assert told == text
        return
    # The word that is whole first ends the text, at its own beginning or that of one around it.
    end = min(place + len(word) for word, place in found.items())
    assert told == text[: len(told)]
    assert len(told) <= end
    assert any(text.startswith(word, len(told)) for word in words)
