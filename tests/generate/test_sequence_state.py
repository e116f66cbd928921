"""Token sequences: positions, and the tokens that other sequences may take over."""

from calumma.generate.params import ImageSampling
from calumma.generate.sequence_state import Guidance, SequenceState
from calumma.vocabulary import Vocabulary


def test_positions_follow_the_order_of_an_image() -> None:
    sequence = SequenceState(list(range(9)))
    assert sequence.position_ids(2, 3) == (2, 3, 4)
    sequence.order_start, sequence.order = 3, [0, 2, 1, 3]
    assert sequence.position_ids(2, 6) == (2, 3, 5, 4, 6, 7)


def test_tokens_out_of_reading_order_are_not_shared() -> None:
    sequence = SequenceState([5, 6, 7])
    assert sequence.shareable_token_ids == [5, 6, 7]
    sequence.num_shareable = 2
    assert sequence.shareable_token_ids == [5, 6]


def test_accepted_tokens_are_computed_when_they_are_appended() -> None:
    sequence = SequenceState([1, 2, 3], num_computed_tokens=3)
    sequence.truncate(1)
    sequence.num_accepted = 1
    sequence.append(7)
    sequence.append(8)
    assert (sequence.token_ids, sequence.num_computed_tokens, sequence.num_uncomputed_tokens) == ([1, 7, 8], 2, 1)


def test_guidance_has_the_sequences_that_its_scales_need() -> None:
    v = Vocabulary(num_codes=4, num_text=256)
    context = [0, 30, v.begin_image]
    assert Guidance.build(context, v, ImageSampling(guidance_scale=1.0)).uncond is None
    guidance = Guidance.build(context, v, ImageSampling(guidance_scale=2.0))
    assert guidance.uncond is not None and guidance.uncond.token_ids == [0, v.begin_image]
    assert guidance.image_cond is None and not guidance.has_earlier_image
