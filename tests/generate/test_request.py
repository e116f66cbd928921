"""One request: its rows, its guidance, the most it can need."""

from __future__ import annotations

from typing import Any

import pytest

from calumma.errors import GenerationError
from calumma.generate.grammar import TokenKind
from calumma.generate.params import ImageSampling, Request
from calumma.generate.request import RequestState, SequenceState
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=9)
BOS, EOS, BEGIN, END = V.bos, V.eos, V.begin_image, V.end_image
WORD = V.text.start
IMAGE = (BEGIN, 4, 5, END)


def state(*ids: int, scales: tuple[float, float] = (3.0, 1.2), **options: Any) -> RequestState:
    """Two codes to an image."""
    image = ImageSampling(guidance_scale=scales[0], image_guidance_scale=scales[1])
    return RequestState.from_request(
        Request(prompt_token_ids=ids, image=image, **options),
        V,
        codes_per_image=2,
        max_model_len=40,
    )


def test_a_row_goes_back_to_any_length() -> None:
    row = SequenceState([1, 2, 3, 4, 5], num_computed_tokens=3)
    assert row.num_uncomputed_tokens == 2
    row.truncate(4)
    assert (row.token_ids, row.num_computed_tokens) == ([1, 2, 3, 4], 3)
    row.truncate(2)
    assert (row.token_ids, row.num_computed_tokens, row.num_uncomputed_tokens) == ([1, 2], 2, 0)


def test_ids_go_to_all_rows_and_guidance_ends_with_its_image() -> None:
    made = state(BOS, WORD, *IMAGE, WORD)
    made.append_token(WORD, -0.5)
    assert made.sequences == [made.cond]
    made.append_token(BEGIN, -1.0)
    made.append_token(6, -2.0)
    assert made.guidance is not None
    image_cond, uncond = made.guidance.image_cond, made.guidance.uncond
    assert image_cond is not None and uncond is not None
    assert made.cond.token_ids == [BOS, WORD, *IMAGE, WORD, WORD, BEGIN, 6]
    assert image_cond.token_ids == [BOS, *IMAGE, BEGIN, 6]
    assert uncond.token_ids == [BOS, BEGIN, 6]
    assert made.guidance_sequences == (made.cond, image_cond, uncond)
    made.append_token(7, -2.0)
    made.append_token(END, 0.0)
    assert made.sequences == [made.cond]
    assert (made.output_token_ids, made.logprobs) == (
        [WORD, BEGIN, 6, 7, END],
        [-0.5, -1.0, -2.0, -2.0, 0.0],
    )
    assert not made.is_finished
    made.append_token(EOS, -0.1)
    assert (made.is_finished, made.finish_reason) == (True, "stop")
    assert 0 < made.time_to_first_token <= made.latency


@pytest.mark.parametrize(
    ("before", "scales", "images", "none"),
    [
        ((), (3.0, 1.2), False, True),
        ((), (1.0, 1.2), False, False),
        ((), (2.0, 1.0), False, True),
        (IMAGE, (3.0, 1.2), True, True),
        (IMAGE, (3.0, 1.0), True, False),
        (IMAGE, (2.0, 2.0), False, True),
        (IMAGE, (1.0, 2.0), True, True),
        (IMAGE, (1.0, 1.0), False, False),
    ],
)
def test_only_rows_that_weigh_something_are_read(
    before: tuple[int, ...], scales: tuple[float, float], images: bool, none: bool
) -> None:
    made = state(BOS, WORD, *before, scales=scales, image_first=True)
    made.append_token(BEGIN, 0.0)
    assert made.guidance is not None
    found = made.guidance.image_cond is not None, made.guidance.uncond is not None
    assert found == (images, none)
    assert made.reservation.num_sequences >= len(made.sequences)
    # What stands in for a row must leave the mixture as it is: see `guided`.
    full, image, nothing = (row is made.cond for row in made.guidance_sequences)
    assert full
    assert image == (not images and (bool(before) or not none))
    assert nothing == (not none and not images)


def test_rows_lie_one_behind_the_other() -> None:
    made = state(BOS, *IMAGE, max_new_tokens=10, image_first=True)
    # 5 ids and 10 new ones; of images 1 + 4 of the prompt and 2 of 4 to come; 4 of the open one.
    assert (
        made.reservation.num_cond_slots,
        made.reservation.num_image_cond_slots,
        made.reservation.num_uncond_slots,
    ) == (15, 13, 4)
    assert (made.reservation.num_slots, made.reservation.num_sequences) == (32, 3)
    made.allocate(100, batch_slot=3)
    made.append_token(BEGIN, 0.0)
    assert [row.start_slot for row in made.sequences] == [100, 115, 128]
    assert made.batch_slot == 3


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"max_images": 0}, 1),
        ({"modality": "text"}, 1),
        ({"max_new_tokens": 3}, 1),
        ({"max_new_tokens": 7}, 2),
        ({"max_new_tokens": 8}, 3),
        ({"max_new_tokens": 8, "max_images": 1}, 2),
        ({"scales": (1.0, 1.0)}, 1),
        ({"scales": (2.0, 2.0)}, 2),
    ],
)
def test_rows_that_can_never_be_are_not_counted(options: dict[str, Any], rows: int) -> None:
    assert state(BOS, WORD, **options).reservation.num_sequences == rows


def test_an_image_left_open_has_its_guidance_at_once() -> None:
    made = state(BOS, WORD, BEGIN, 4, max_new_tokens=2)
    assert made.guidance is not None and made.guidance.uncond is not None
    uncond = made.guidance.uncond
    assert uncond.token_ids == [BOS, BEGIN, 4]
    made.allocate(7, batch_slot=0)
    assert uncond.start_slot == 7 + made.reservation.num_cond_slots


def test_why_it_ended() -> None:
    assert state(BOS, max_new_tokens=0).finish_reason == "length"
    made = state(BOS)
    made.finish("abort")
    assert (made.is_finished, made.finish_reason, made.sequences) == (
        True,
        "abort",
        [made.cond],
    )
    # All the images there may be are drawn: nothing is missing, though no room is left.
    made = state(BOS, modality="image", max_images=1, max_new_tokens=4)
    for id_ in IMAGE:
        made.append_token(id_, 0.0)
    assert (made.is_finished, made.finish_reason) == (True, "stop")


def test_images_alone_without_room_for_one_are_refused() -> None:
    with pytest.raises(GenerationError) as caught:
        state(BOS, WORD, modality="image", max_new_tokens=3)
    assert str(caught.value) == (
        "an image needs 4 tokens, but 3 may be generated; expected enough for the complete image. "
        "Raise max_new_tokens, or shorten the prompt."
    )


def read(made: RequestState) -> None:
    for row in made.sequences:
        row.num_computed_tokens = len(row.token_ids)


def test_an_id_that_is_supposed_gives_way_to_the_one_that_comes() -> None:
    made = state(BOS, WORD)
    made.allocate(10, batch_slot=3)
    read(made)
    made.append_placeholder()
    made.append_placeholder()
    assert (made.cond.token_ids, made.num_placeholders, made.next_kind) == (
        [BOS, WORD, ~3],
        1,
        TokenKind.TEXT_OR_IMAGE,
    )
    read(made)
    assert made.verify([WORD + 1]) == 1
    made.append_token(WORD + 1, -1.0)
    # As it was supposed to be text, and is, it has been read.
    assert (made.cond.token_ids, made.cond.num_uncomputed_tokens, made.num_placeholders) == (
        [BOS, WORD, WORD + 1],
        0,
        0,
    )
    made.append_placeholder()
    read(made)
    assert made.verify([BEGIN]) == 1
    made.append_token(BEGIN, -1.0)
    # It was not text: it is to be read again, with the guidance of the image that it begins.
    assert [row.token_ids[-1] for row in made.sequences] == [BEGIN, BEGIN]
    assert [row.num_uncomputed_tokens for row in made.sequences] == [1, 2]


def test_nothing_is_guessed_while_more_than_the_newest_code_is_unread() -> None:
    made = RequestState.from_request(
        Request(
            prompt_token_ids=(BOS, WORD, BEGIN, 4), image=ImageSampling(num_speculative_tokens=2)
        ),
        V,
        9,
        max_model_len=40,
    )
    made.append_drafts()
    assert (made.num_draft_tokens, made.is_speculating) == (0, True)
    for row in made.sequences:
        row.num_computed_tokens = len(row.token_ids) - 1
    made.append_drafts()
    assert (made.num_draft_tokens, made.cond.token_ids) == (2, [BOS, WORD, BEGIN, 4, 4, 4])
