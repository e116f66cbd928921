"""Request state: sequences, guidance, KV-cache reservation, placeholders and drafts."""

from typing import Any

import pytest

from calumma.errors import GenerationError
from calumma.generate.grammar import TokenKind
from calumma.generate.params import ImageSampling, Request
from calumma.generate.request import RequestState
from calumma.generate.sequence_state import SequenceState
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=9)
BOS, EOS, BEGIN, END = V.bos, V.eos, V.begin_image, V.end_image
WORD = V.text.start
IMAGE = (BEGIN, 4, 5, END)


def make_state(*ids: int, scales: tuple[float, float] = (3.0, 1.2), **options: Any) -> RequestState:
    """Return a request of a model with two codes per image."""
    image = ImageSampling(guidance_scale=scales[0], image_guidance_scale=scales[1])
    return RequestState.from_request(
        Request(prompt_token_ids=ids, image=image, **options), V, codes_per_image=2, max_model_len=40
    )


def test_a_sequence_is_truncated() -> None:
    sequence = SequenceState([1, 2, 3, 4, 5], num_computed_tokens=3)
    assert sequence.num_uncomputed_tokens == 2
    sequence.truncate(4)
    assert (sequence.token_ids, sequence.num_computed_tokens) == ([1, 2, 3, 4], 3)
    sequence.truncate(2)
    assert (sequence.token_ids, sequence.num_computed_tokens, sequence.num_uncomputed_tokens) == ([1, 2], 2, 0)


def test_tokens_go_to_all_sequences_and_guidance_ends_with_its_image() -> None:
    made = make_state(BOS, WORD, *IMAGE, WORD)
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
    assert (made.output_token_ids, made.logprobs) == ([WORD, BEGIN, 6, 7, END], [-0.5, -1.0, -2.0, -2.0, 0.0])
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
def test_only_sequences_with_weight_exist(
    before: tuple[int, ...], scales: tuple[float, float], images: bool, none: bool
) -> None:
    made = make_state(BOS, WORD, *before, scales=scales, image_first=True)
    made.append_token(BEGIN, 0.0)
    assert made.guidance is not None
    found = made.guidance.image_cond is not None, made.guidance.uncond is not None
    assert found == (images, none)
    assert made.reservation.num_sequences >= len(made.sequences)
    # Replacements must not change the guided logits: see `apply_cfg`.
    full, image, nothing = (sequence is made.cond for sequence in made.guidance_sequences)
    assert full
    assert image == (not images and (bool(before) or not none))
    assert nothing == (not none and not images)


def test_sequences_have_consecutive_slots() -> None:
    made = make_state(BOS, *IMAGE, max_new_tokens=10, image_first=True)
    # 5 + 10 new tokens; for images 1 + 4 of the prompt and twice 4 to come; 4 of the open one.
    assert (
        made.reservation.num_cond_slots,
        made.reservation.num_image_cond_slots,
        made.reservation.num_uncond_slots,
    ) == (15, 13, 4)
    assert (made.reservation.num_slots, made.reservation.num_sequences) == (32, 3)
    made.allocate(100, batch_slot=3)
    made.append_token(BEGIN, 0.0)
    assert [sequence.start_slot for sequence in made.sequences] == [100, 115, 128]
    assert made.batch_slot == 3


@pytest.mark.parametrize(
    ("options", "num_sequences"),
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
def test_sequences_that_cannot_exist_are_not_reserved(options: dict[str, Any], num_sequences: int) -> None:
    assert make_state(BOS, WORD, **options).reservation.num_sequences == num_sequences


def test_an_image_left_open_has_guidance_at_once() -> None:
    made = make_state(BOS, WORD, BEGIN, 4, max_new_tokens=2)
    assert made.guidance is not None and made.guidance.uncond is not None
    uncond = made.guidance.uncond
    assert uncond.token_ids == [BOS, BEGIN, 4]
    made.allocate(7, batch_slot=0)
    assert uncond.start_slot == 7 + made.reservation.num_cond_slots


def test_finish_reasons() -> None:
    assert make_state(BOS, max_new_tokens=0).finish_reason == "length"
    made = make_state(BOS)
    made.finish("abort")
    assert (made.is_finished, made.finish_reason, made.sequences) == (True, "abort", [made.cond])
    # All images are generated: the output is complete, although no tokens remain.
    made = make_state(BOS, modality="image", max_images=1, max_new_tokens=4)
    for id_ in IMAGE:
        made.append_token(id_, 0.0)
    assert (made.is_finished, made.finish_reason) == (True, "stop")


def test_images_alone_that_do_not_fit_are_refused() -> None:
    with pytest.raises(GenerationError) as caught:
        make_state(BOS, WORD, modality="image", max_new_tokens=3)
    assert str(caught.value) == (
        "an image needs 4 tokens, but 3 may be generated; expected enough for the complete image. "
        "Raise max_new_tokens, or shorten the prompt."
    )


def compute(made: RequestState) -> None:
    for sequence in made.sequences:
        sequence.num_computed_tokens = len(sequence.token_ids)


def test_a_placeholder_is_replaced_by_the_sampled_token() -> None:
    made = make_state(BOS, WORD)
    made.allocate(10, batch_slot=3)
    compute(made)
    made.append_placeholder()
    made.append_placeholder()
    assert (made.cond.token_ids, made.num_placeholders, made.next_kind) == (
        [BOS, WORD, ~3],
        1,
        TokenKind.TEXT_OR_IMAGE,
    )
    compute(made)
    assert made.verify([WORD + 1]) == 1
    made.append_token(WORD + 1, -1.0)
    # Predicted to be text, and text: it has been computed.
    assert (made.cond.token_ids, made.cond.num_uncomputed_tokens, made.num_placeholders) == (
        [BOS, WORD, WORD + 1],
        0,
        0,
    )
    made.append_placeholder()
    compute(made)
    assert made.verify([BEGIN]) == 1
    made.append_token(BEGIN, -1.0)
    # Mispredicted: it is computed again, with the guidance of the image that it begins.
    assert [sequence.token_ids[-1] for sequence in made.sequences] == [BEGIN, BEGIN]
    assert [sequence.num_uncomputed_tokens for sequence in made.sequences] == [1, 2]


def test_nothing_is_drafted_before_the_prompt_is_computed() -> None:
    made = RequestState.from_request(
        Request(prompt_token_ids=(BOS, WORD, BEGIN, 4), image=ImageSampling(num_speculative_tokens=2)),
        V,
        9,
        max_model_len=40,
    )
    made.append_drafts()
    assert (made.num_draft_tokens, made.is_speculating) == (0, True)
    for sequence in made.sequences:
        sequence.num_computed_tokens = len(sequence.token_ids) - 1
    made.append_drafts()
    assert (made.num_draft_tokens, made.cond.token_ids) == (2, [BOS, WORD, BEGIN, 4, 4, 4])
