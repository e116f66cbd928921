"""Grammar: no sequence of allowed tokens is malformed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.generate.grammar import Grammar, TokenKind
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=5)
BEGIN, END = V.begin_image, V.end_image


def assert_well_formed(ids: list[int], codes: int) -> None:
    """Check text, complete images, and at most one end-of-sequence, at the end."""
    index = 0
    while index < len(ids):
        if ids[index] == BEGIN:
            assert all(id_ in V.codes for id_ in ids[index + 1 : index + 1 + codes])
            assert ids[index + 1 + codes] == END
            index += codes + 2
        else:
            assert ids[index] in V.text or (ids[index] == V.eos and index == len(ids) - 1)
            index += 1


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 30), st.integers(0, 3), st.booleans())
def test_no_choice_of_tokens_is_malformed(
    seed: int, codes: int, limit: int, max_images: int, image_first: bool
) -> None:
    random = np.random.default_rng(seed)
    grammar = Grammar(V, codes, max_remaining_tokens=limit, max_images=max_images, image_first=image_first)
    ids: list[int] = []
    while grammar.max_remaining_tokens > 0 and V.eos not in ids:
        allowed = [id_ for id_ in range(V.size) if grammar.allows(id_)]
        ids.append(int(random.choice(allowed)))
        grammar.accept_token(ids[-1])
    assert_well_formed(ids, codes)
    assert len(ids) <= limit
    assert ids.count(BEGIN) <= max_images
    if image_first and max_images and limit >= codes + 2:
        assert ids[0] == BEGIN


def test_next_kinds_by_hand() -> None:
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
    assert Grammar(V, 2, max_remaining_tokens=4, max_images=0, image_first=True).next_kind is TokenKind.TEXT


def test_images_alone_are_followed_by_images_or_the_end() -> None:
    grammar = Grammar(V, 1, max_remaining_tokens=8, max_images=2, images_only=True, image_first=True)
    expected = []
    for id_ in (BEGIN, 4, END, BEGIN, 5, END):
        expected.append(grammar.next_kind)
        grammar.accept_token(id_)
    image = [TokenKind.IMAGE_CODE, TokenKind.END_IMAGE]
    assert expected == [TokenKind.BEGIN_IMAGE, *image, TokenKind.IMAGE_OR_EOS, *image]
    assert (grammar.next_kind, grammar.forced_token) == (TokenKind.EOS, V.eos)
    # A second image that does not fit is not begun either.
    assert Grammar(V, 1, max_remaining_tokens=2, images_only=True).next_kind is TokenKind.EOS


def test_text_may_precede_images_alone() -> None:
    def grammar(max_remaining_tokens: int = 9) -> Grammar:
        return Grammar(
            V,
            1,
            max_remaining_tokens=max_remaining_tokens,
            max_images=1,
            images_only=True,
            image_first=True,
            max_leading_text_tokens=2,
        )

    text = V.text.start
    for prefix in ((), (text,), (text, text)):
        one = grammar()
        for id_ in prefix:
            assert one.next_kind is TokenKind.TEXT_BEFORE_IMAGE and not one.allows(V.eos)
            one.accept_token(id_)
        for id_ in (BEGIN, 4, END):
            one.accept_token(id_)
        assert one.next_kind is TokenKind.EOS
    late = grammar()
    late.accept_token(text)
    late.accept_token(text)
    assert late.forced_token == BEGIN
    assert grammar(3).forced_token == BEGIN  # no token is left for text


def test_a_token_is_forced_if_it_is_the_only_one() -> None:
    states = {
        None: [Grammar(V, 2, max_remaining_tokens=9), Grammar(V, 2, max_remaining_tokens=9, num_codes_remaining=1)],
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
def test_other_special_tokens_are_never_allowed(id_: int) -> None:
    assert not Grammar(V, 2, max_remaining_tokens=9).allows(id_)


def test_a_token_that_is_not_allowed_is_an_internal_error() -> None:
    with pytest.raises(AssertionError, match="id 4 was not allowed here"):
        Grammar(V, 2, max_remaining_tokens=9).accept_token(4)


def test_the_kind_after_next_is_predicted_after_codes_and_text() -> None:
    grammar = Grammar(V, codes_per_image=2, max_remaining_tokens=8, max_images=2)
    predicted = []
    for id_ in (V.text.start, BEGIN, 4, 7, END, V.text.start, V.text.start, V.eos):
        predicted.append(grammar.kind_after_next)
        grammar.accept_token(id_)
    assert predicted == [
        TokenKind.TEXT_OR_IMAGE,
        TokenKind.TEXT_OR_IMAGE,  # mispredicted: begin-of-image
        TokenKind.IMAGE_CODE,
        None,  # the image's last code
        None,
        TokenKind.TEXT,
        TokenKind.TEXT,
        None,  # the token limit
    ]
    assert Grammar(V, codes_per_image=2, max_remaining_tokens=8, images_only=True).kind_after_next is None
