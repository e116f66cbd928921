"""Drafts by hand, and the fixed point for a table small enough to enumerate."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from calumma.errors import GenerationError
from calumma.generate.engine import Engine
from calumma.generate.jacobi import JacobiDrafter
from calumma.generate.params import EngineConfig, ImageSampling, Request
from calumma.generate.request import RequestState
from calumma.model.decoder import Decoder
from calumma.vocabulary import Vocabulary


def test_a_draft_copies_the_cell_above() -> None:
    drafter = JacobiDrafter(num_speculative_tokens=5, codes_per_side=3)
    assert drafter.propose([4, 5, 6, 7], num_codes_remaining=5) == [5, 6, 7, 5]
    assert JacobiDrafter(num_speculative_tokens=2, codes_per_side=3).propose([4, 5, 6, 7], num_codes_remaining=5) == [
        5,
        6,
    ]
    assert JacobiDrafter(num_speculative_tokens=9, codes_per_side=3).propose([8], num_codes_remaining=8) == [
        8,
        8,
        8,
        8,
        8,
        8,
        8,
    ]


def test_nothing_is_drafted_before_the_first_code_or_after_the_last() -> None:
    assert JacobiDrafter(num_speculative_tokens=3, codes_per_side=2).propose([], num_codes_remaining=4) == []
    assert JacobiDrafter(num_speculative_tokens=3, codes_per_side=2).propose([4, 5, 6], num_codes_remaining=1) == []
    assert JacobiDrafter(num_speculative_tokens=0, codes_per_side=2).propose([4], num_codes_remaining=3) == []


def test_drafts_are_accepted_up_to_the_first_mismatch() -> None:
    drafter = JacobiDrafter(num_speculative_tokens=3, codes_per_side=2)
    drafter.propose([4, 5], num_codes_remaining=9)
    assert drafter.draft_token_ids == [4, 5, 4]
    # After the newest code 4 is sampled, as drafted; after it 7, where 5 was drafted.
    assert drafter.verify([4, 7, 8, 9]) == 2
    assert drafter.draft_token_ids == [8, 9]
    assert drafter.propose([4, 5, 4, 7], num_codes_remaining=7) == [8, 9, 8]
    assert drafter.verify([8, 9, 8, 6]) == 4
    assert drafter.draft_token_ids == []


def test_there_is_one_sample_more_than_drafts() -> None:
    with pytest.raises(AssertionError, match="2 samples for 0 drafts"):
        JacobiDrafter(num_speculative_tokens=3, codes_per_side=2).verify([4, 4])


LENGTH, CODES = 4, 3


def conditional(before: tuple[int, ...]) -> np.ndarray:
    """Return the distribution of the next code, different after every prefix."""
    raw = np.random.default_rng([7, *before]).random(CODES) ** 3 + 0.02
    return raw / raw.sum()


def sample(before: tuple[int, ...], uniform: float) -> int:
    return int(np.searchsorted(conditional(before).cumsum(), uniform, side="right"))


def image(uniforms: np.ndarray, num_drafts: int) -> tuple[tuple[int, ...], int]:
    """Return an image and the number of its steps."""
    drafter, codes, steps = JacobiDrafter(num_drafts, codes_per_side=2), (), 0
    while len(codes) < LENGTH:
        drafts = drafter.propose(codes, LENGTH - len(codes))
        sampled = [sample((*codes, *drafts[:n]), uniforms[len(codes) + n]) for n in range(len(drafts) + 1)]
        codes = (*codes, *sampled[: drafter.verify(sampled)])
        steps += 1
    return codes, steps


@pytest.mark.parametrize("num_drafts", [1, 2, 8])
def test_images_have_the_distribution_of_one_code_per_step(num_drafts: int) -> None:
    rng = np.random.default_rng(0)
    number = 4000
    uniforms = rng.random((number, LENGTH))
    made = [image(row, num_drafts) for row in uniforms]
    found = Counter(codes for codes, _ in made)
    expected = {
        codes: number * np.prod([conditional(codes[:n])[codes[n]] for n in range(LENGTH)])
        for codes in product(range(CODES), repeat=LENGTH)
    }
    # Chi-square over the 81 images, the rarest combined; its mean is the number of cells
    # less one, and four standard deviations more is once in thousands of seeds.
    common = [codes for codes, count in expected.items() if count >= 5]
    cells = [(found[codes], expected[codes]) for codes in common]
    cells.append((number - sum(f for f, _ in cells), number - sum(e for _, e in cells)))
    square = sum((f - e) ** 2 / e for f, e in cells)
    assert square < len(cells) - 1 + 4 * (2 * (len(cells) - 1)) ** 0.5
    # Each image even equals that of one code per step, in fewer steps.
    assert [codes for codes, _ in made] == [image(row, 0)[0] for row in uniforms]
    assert sum(steps for _, steps in made) < 0.9 * LENGTH * number


def run(engine: Engine, requests: list[Request]) -> tuple[list[RequestState], int]:
    """Run requests; returns their states and the number of steps."""
    states, steps = engine.submit_all(requests), 0
    while not engine.is_idle:
        engine.step()
        steps += 1
    return states, steps


@pytest.mark.parametrize("chunk", [512, 3])
def test_a_batch_with_and_without_drafts_gets_the_tokens_of_no_drafts(decoder: Decoder, chunk: int) -> None:
    v = Vocabulary(num_codes=16, num_text=300)
    engine = Engine(decoder, v, 16, config=EngineConfig(prefill_chunk_size=chunk))
    prompts = [(0, 30, 31), (0, 40, v.begin_image, 4, 5, 6), (0, v.begin_image, *range(4, 20), 20)]
    scales = [(1.0, 1.0), (3.0, 1.2), (2.0, 2.0)]
    plain, drafting = [], []
    for number, (ids, (text, image)) in enumerate(product(prompts, scales)):
        sampling = ImageSampling(temperature=0.4, guidance_scale=text, image_guidance_scale=image)
        num_drafts = (0, 1, 5, 40)[number % 4]
        one = Request(prompt_token_ids=ids, image=sampling, seed=number, max_new_tokens=40, image_first=True)
        plain.append(one)
        drafting.append(replace(one, image=replace(sampling, num_speculative_tokens=num_drafts)))
    without, many = run(engine, plain)
    found, fewer = run(engine, drafting)
    assert [state.output_token_ids for state in found] == [state.output_token_ids for state in without]
    for one, other in zip(found, without, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=1e-4)
    assert fewer <= many
    assert engine.stats.num_reserved_tokens == 0


def test_an_image_of_one_color_takes_few_steps(decoder: Decoder) -> None:
    v = Vocabulary(num_codes=16, num_text=300)
    engine = Engine(decoder, v, 16)
    # With logits for one code alone, every draft is right.
    sampling = ImageSampling(temperature=0.0, num_speculative_tokens=5, guidance_scale=1.0, image_guidance_scale=1.0)
    engine.sampler.vocab_slices.image_logits = (  # type: ignore[method-assign]
        lambda hidden, _: torch.eye(16)[3].expand(len(hidden), -1)
    )
    one = Request(prompt_token_ids=(0,), image=sampling, modality="image", max_images=1, max_new_tokens=18)
    (state,), steps = run(engine, [one])
    assert state.output_token_ids == [v.begin_image, *[v.code_to_id(3)] * 16, v.end_image]
    # The first code, twice six, and the remaining three.
    assert steps == 1 + 2 + 1


def test_a_negative_number_of_drafts_is_refused() -> None:
    with pytest.raises(GenerationError) as caught:
        ImageSampling(num_speculative_tokens=-1)
    assert str(caught.value) == ("num_speculative_tokens=-1; expected at least 0, the image tokens to draft per step.")
