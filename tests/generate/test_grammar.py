"""What may come next: over random choices, no malformed sequence is possible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.generate.grammar import Grammar, TokenKind
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=5)
BEGIN, END = V.begin_image, V.end_image


def assert_well_formed(ids: list[int], codes: int) -> None:
    """Text, whole images, and at most one end of sequence, at the end."""
    place = 0
    while place < len(ids):
        if ids[place] == BEGIN:
            assert all(id_ in V.codes for id_ in ids[place + 1 : place + 1 + codes])
            assert ids[place + 1 + codes] == END
            place += codes + 2
        else:
            assert ids[place] in V.text or (ids[place] == V.eos and place == len(ids) - 1)
            place += 1


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 5),
    st.integers(0, 30),
    st.integers(0, 3),
    st.booleans(),
)
def test_no_choice_of_ids_is_malformed(
    seed: int, codes: int, room: int, max_images: int, image_first: bool
) -> None:
    random = np.random.default_rng(seed)
    grammar = Grammar(
        V, codes, max_remaining_tokens=room, max_images=max_images, image_first=image_first
    )
    ids: list[int] = []
    while grammar.max_remaining_tokens > 0 and V.eos not in ids:
        allowed = [id_ for id_ in range(V.size) if grammar.allows(id_)]
        ids.append(int(random.choice(allowed)))
        grammar.accept_token(ids[-1])
    assert_well_formed(ids, codes)
    assert len(ids) <= room
    assert ids.count(BEGIN) <= max_images
    if image_first and max_images and room >= codes + 2:
        assert ids[0] == BEGIN


def test_what_may_come_next_by_hand() -> None:
    grammar = Grammar(V, codes_per_image=2, max_remaining_tokens=9, max_images=1, image_first=True)
    expected = []
    for id_ in (BEGIN, 4, 7, END, V.text.start, V.eos):
        expected.append(grammar.next_kind)
        grammar.accept_token(id_)
    assert expected == [
        TokenKind.BEGIN_IMAGE,
        TokenKind.IMAGE_CODE,
        TokenKind.IMAGE_CODE,
        TokenKind.END_IMAGE,
        TokenKind.TEXT,
        TokenKind.TEXT,
    ]


def test_an_image_begins_only_where_it_fits() -> None:
    assert Grammar(V, 2, max_remaining_tokens=4).next_kind is TokenKind.TEXT_OR_IMAGE
    assert Grammar(V, 2, max_remaining_tokens=3).next_kind is TokenKind.TEXT
    assert Grammar(V, 2, max_remaining_tokens=3, image_first=True).next_kind is TokenKind.TEXT
    assert (
        Grammar(V, 2, max_remaining_tokens=4, max_images=0, image_first=True).next_kind
        is TokenKind.TEXT
    )


def test_images_alone_are_followed_by_images_or_the_end() -> None:
    grammar = Grammar(
        V, 1, max_remaining_tokens=8, max_images=2, images_only=True, image_first=True
    )
    expected = []
    for id_ in (BEGIN, 4, END, BEGIN, 5, END):
        expected.append(grammar.next_kind)
        grammar.accept_token(id_)
    image = [TokenKind.IMAGE_CODE, TokenKind.END_IMAGE]
    assert expected == [TokenKind.BEGIN_IMAGE, *image, TokenKind.IMAGE_OR_EOS, *image]
    assert (grammar.next_kind, grammar.forced_token) == (TokenKind.EOS, V.eos)
    # A second image that has no room is not begun either.
    assert Grammar(V, 1, max_remaining_tokens=2, images_only=True).next_kind is TokenKind.EOS


def test_only_what_leaves_no_choice_is_forced() -> None:
    states = {
        None: [
            Grammar(V, 2, max_remaining_tokens=9),
            Grammar(V, 2, max_remaining_tokens=9, num_codes_remaining=1),
        ],
        BEGIN: [Grammar(V, 2, max_remaining_tokens=9, image_first=True)],
        END: [Grammar(V, 2, max_remaining_tokens=9, num_codes_remaining=0)],
        V.eos: [Grammar(V, 2, max_remaining_tokens=9, max_images=0, images_only=True)],
    }
    for forced, grammars in states.items():
        for grammar in grammars:
            assert grammar.forced_token == forced
            allowed = [id_ for id_ in range(V.size) if grammar.allows(id_)]
            assert (len(allowed) == 1) == (forced is not None)
            assert forced is None or allowed == [forced]


@pytest.mark.parametrize("id_", [V.bos, V.pad, V.unk, V.end_turn, V.placeholder, 4, END])
def test_other_controls_are_never_chosen(id_: int) -> None:
    assert not Grammar(V, 2, max_remaining_tokens=9).allows(id_)


def test_a_choice_against_the_rules_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="id 4 was not allowed here"):
        Grammar(V, 2, max_remaining_tokens=9).accept_token(4)


def test_what_comes_behind_the_next_id_is_foreseen_where_it_is_a_code_or_text() -> None:
    grammar = Grammar(V, codes_per_image=2, max_remaining_tokens=8, max_images=2)
    foreseen = []
    for id_ in (V.text.start, BEGIN, 4, 7, END, V.text.start, V.text.start, V.eos):
        foreseen.append(grammar.kind_after_next)
        grammar.accept_token(id_)
    assert foreseen == [
        TokenKind.TEXT_OR_IMAGE,
        TokenKind.TEXT_OR_IMAGE,  # belied by begin-of-image
        TokenKind.IMAGE_CODE,
        None,  # the image's last code
        None,
        TokenKind.TEXT,
        TokenKind.TEXT,
        None,  # the last id that there is room for
    ]
    assert (
        Grammar(V, codes_per_image=2, max_remaining_tokens=8, images_only=True).kind_after_next
        is None
    )
