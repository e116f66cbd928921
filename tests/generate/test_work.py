"""One request: its rows, its guidance, the most it can need."""

from __future__ import annotations

from typing import Any

import pytest

from calumma.errors import GenerationError
from calumma.generate.config import ImageSampling, Request
from calumma.generate.grammar import Next
from calumma.generate.work import Row, Work, work_of
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=9)
BOS, EOS, BEGIN, END = V.bos, V.eos, V.begin_image, V.end_image
WORD = V.text.start
IMAGE = (BEGIN, 4, 5, END)


def work(*ids: int, scales: tuple[float, float] = (3.0, 1.2), **options: Any) -> Work:
    """Two codes to an image."""
    image = ImageSampling(text_guidance=scales[0], image_guidance=scales[1])
    return work_of(Request(ids=ids, image=image, **options), V, codes_per_image=2, longest=40)


def test_a_row_goes_back_to_any_length() -> None:
    row = Row([1, 2, 3, 4, 5], length=3)
    assert row.pending == 2
    row.truncate(4)
    assert (row.ids, row.length) == ([1, 2, 3, 4], 3)
    row.truncate(2)
    assert (row.ids, row.length, row.pending) == ([1, 2], 2, 0)


def test_ids_go_to_all_rows_and_guidance_ends_with_its_image() -> None:
    made = work(BOS, WORD, *IMAGE, WORD)
    made.take(WORD, -0.5)
    assert made.rows == [made.full]
    made.take(BEGIN, -1.0)
    made.take(6, -2.0)
    assert made.images is not None and made.none is not None
    assert made.full.ids == [BOS, WORD, *IMAGE, WORD, WORD, BEGIN, 6]
    assert made.images.ids == [BOS, *IMAGE, BEGIN, 6]
    assert made.none.ids == [BOS, BEGIN, 6]
    assert made.guides == (made.full, made.images, made.none)
    made.take(7, -2.0)
    made.take(END, 0.0)
    assert made.rows == [made.full]
    assert (made.ids, made.logprobs) == (
        [WORD, BEGIN, 6, 7, END],
        [-0.5, -1.0, -2.0, -2.0, 0.0],
    )
    assert not made.done
    made.take(EOS, -0.1)
    assert (made.done, made.finish_reason) == (True, "stop")
    assert 0 < made.first_token <= made.total


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
    made = work(BOS, WORD, *before, scales=scales, image_first=True)
    made.take(BEGIN, 0.0)
    assert (made.images is not None, made.none is not None) == (images, none)
    assert made.extent.rows >= len(made.rows)
    # What stands in for a row must leave the mixture as it is: see `guided`.
    full, image, nothing = (row is made.full for row in made.guides)
    assert full
    assert image == (not images and (bool(before) or not none))
    assert nothing == (not none and not images)


def test_rows_lie_one_behind_the_other() -> None:
    made = work(BOS, *IMAGE, max_new_tokens=10, image_first=True)
    # 5 ids and 10 new ones; of images 1 + 4 of the prompt and 2 of 4 to come; 4 of the open one.
    assert (made.extent.full, made.extent.images, made.extent.none) == (15, 13, 4)
    assert (made.extent.slots, made.extent.rows) == (32, 3)
    made.place(100, seat=3)
    made.take(BEGIN, 0.0)
    assert [row.first for row in made.rows] == [100, 115, 128]
    assert made.seat == 3


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
    assert work(BOS, WORD, **options).extent.rows == rows


def test_an_image_left_open_has_its_guidance_at_once() -> None:
    made = work(BOS, WORD, BEGIN, 4, max_new_tokens=2)
    assert made.none is not None
    assert made.none.ids == [BOS, BEGIN, 4]
    made.place(7, seat=0)
    assert made.none.first == 7 + made.extent.full


def test_why_it_ended() -> None:
    assert work(BOS, max_new_tokens=0).finish_reason == "length"
    made = work(BOS)
    made.end(cancelled=True)
    assert (made.done, made.finish_reason, made.rows) == (True, "cancelled", [made.full])
    # All the images there may be are drawn: nothing is missing, though no room is left.
    made = work(BOS, modality="image", max_images=1, max_new_tokens=4)
    for id_ in IMAGE:
        made.take(id_, 0.0)
    assert (made.done, made.finish_reason) == (True, "stop")


def test_images_alone_without_room_for_one_are_refused() -> None:
    with pytest.raises(GenerationError) as caught:
        work(BOS, WORD, modality="image", max_new_tokens=3)
    assert str(caught.value) == (
        "an image needs 4 ids, but there is room for 3; expected room for the whole image. Raise "
        "max_new_tokens, or shorten the prompt."
    )


def read(made: Work) -> None:
    for row in made.rows:
        row.length = len(row.ids)


def test_an_id_that_is_supposed_gives_way_to_the_one_that_comes() -> None:
    made = work(BOS, WORD)
    made.place(10, seat=3)
    read(made)
    made.suppose()
    made.suppose()
    assert (made.full.ids, made.supposed, made.expected) == ([BOS, WORD, ~3], 1, Next.TEXT_OR_IMAGE)
    read(made)
    assert made.settle([WORD + 1]) == 1
    made.take(WORD + 1, -1.0)
    # As it was supposed to be text, and is, it has been read.
    assert (made.full.ids, made.full.pending, made.supposed) == ([BOS, WORD, WORD + 1], 0, 0)
    made.suppose()
    read(made)
    assert made.settle([BEGIN]) == 1
    made.take(BEGIN, -1.0)
    # It was not text: it is to be read again, with the guidance of the image that it begins.
    assert [row.ids[-1] for row in made.rows] == [BEGIN, BEGIN]
    assert [row.pending for row in made.rows] == [1, 2]


def test_nothing_is_guessed_while_more_than_the_newest_code_is_unread() -> None:
    made = work_of(
        Request(ids=(BOS, WORD, BEGIN, 4), image=ImageSampling(speculate=2)), V, 9, longest=40
    )
    made.guess()
    assert (made.ahead, made.speculates) == (0, True)
    for row in made.rows:
        row.length = len(row.ids) - 1
    made.guess()
    assert (made.ahead, made.full.ids) == (2, [BOS, WORD, BEGIN, 4, 4, 4])
