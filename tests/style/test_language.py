"""Names, prose and messages use the terms of the field; `language.py` has the words."""

import pytest

from tests.style.language import forbidden_words, words_of


def test_no_word_of_the_former_vocabulary_is_used() -> None:
    assert forbidden_words() == []


EXAMPLE = """
def tell_owner(whoever, colours):  # behind the desk
    '''Nobody is
    whole.'''
    data = "told a picture"
    raise ShardError(f"{data} wanted; mend it.")
"""


def test_names_prose_and_messages_are_read_and_data_is_not() -> None:
    words = [(line, word) for line, word, _ in words_of("a/example.py", EXAMPLE)]
    assert words == [
        (2, "behind"),
        (2, "colours (colours)"),
        (2, "desk"),
        (2, "tell_owner (owner)"),
        (2, "tell_owner (tell)"),
        (2, "whoever (whoever)"),
        (3, "Nobody"),
        (3, "is whole"),
        (6, "mend"),
        (6, "wanted"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a/page.md", "The wall-clock time of `row_length`.", []),
        ("a/page.md", "It stands for a picture.", ["picture"]),
        ("a/run.toml", "heat = 1  # the heat", ["heat"]),
        ("a/test_x.py", "def test_the_most_common_place(): ...", []),
        ("a/x.py", "MOST, atMost = 1, 2", ["MOST (most)", "atMost (most)"]),
        ("a/eyes.py", "", ["eyes (eyes)"]),
        ("calumma/tokens/face_detection.py", "eyes = 2", []),
        ("a/x.py", "# colour_asked_colour_drawn is a metric", []),
    ],
)
def test_the_words_depend_on_what_is_read(name: str, text: str, words: list[str]) -> None:
    assert [word for _, word, _ in words_of(name, text)] == words
