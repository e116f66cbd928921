"""Captions: one concept has one group, and a group decides its split."""

from calumma.corpora.captions import (
    caption_group,
    collapse_whitespace,
    group_split,
    normalize_caption,
    remove_skin_tone,
)


def test_case_punctuation_articles_and_tones_do_not_change_a_concept() -> None:
    same = ["waving hand", "Waving-Hand", "a waving hand: dark skin tone", "The waving hand!"]
    assert {normalize_caption(caption) for caption in same} == {"waving hand"}
    assert len({caption_group(caption) for caption in same}) == 1


def test_a_tone_in_the_middle_is_left_out() -> None:
    assert remove_skin_tone("woman, medium-dark skin tone, red hair") == "woman, red hair"
    assert remove_skin_tone("dark chocolate") == "dark chocolate"


def test_a_caption_of_articles_keeps_itself() -> None:
    assert normalize_caption("A") == "a"


def test_about_one_group_in_twenty_is_held_out() -> None:
    held_out = sum(group_split(caption_group(f"thing {number}")) == "held-out" for number in range(4000))
    assert 150 < held_out < 250


def test_white_space_is_folded() -> None:
    assert collapse_whitespace("  a \n b\t") == "a b"
