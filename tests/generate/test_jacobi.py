"""Guesses by hand, and the fixed point on a table small enough to count all of it."""

from __future__ import annotations

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


def test_a_place_is_guessed_to_be_as_the_one_above_it() -> None:
    guesses = JacobiDrafter(num_speculative_tokens=5, codes_per_side=3)
    assert guesses.propose([4, 5, 6, 7], num_codes_remaining=5) == [5, 6, 7, 5]
    assert JacobiDrafter(num_speculative_tokens=2, codes_per_side=3).propose(
        [4, 5, 6, 7], num_codes_remaining=5
    ) == [5, 6]
    assert JacobiDrafter(num_speculative_tokens=9, codes_per_side=3).propose(
        [8], num_codes_remaining=8
    ) == [8, 8, 8, 8, 8, 8, 8]


def test_nothing_is_guessed_before_the_first_code_or_behind_the_last() -> None:
    assert (
        JacobiDrafter(num_speculative_tokens=3, codes_per_side=2).propose([], num_codes_remaining=4)
        == []
    )
    assert (
        JacobiDrafter(num_speculative_tokens=3, codes_per_side=2).propose(
            [4, 5, 6], num_codes_remaining=1
        )
        == []
    )
    assert (
        JacobiDrafter(num_speculative_tokens=0, codes_per_side=2).propose(
            [4], num_codes_remaining=3
        )
        == []
    )


def test_guesses_stand_up_to_the_first_that_is_drawn_otherwise() -> None:
    guesses = JacobiDrafter(num_speculative_tokens=3, codes_per_side=2)
    guesses.propose([4, 5], num_codes_remaining=9)
    assert guesses.draft_token_ids == [4, 5, 4]
    # Behind the newest code 4 is drawn, as guessed; behind it 7, where 5 was guessed.
    assert guesses.verify([4, 7, 8, 9]) == 2
    assert guesses.draft_token_ids == [8, 9]
    assert guesses.propose([4, 5, 4, 7], num_codes_remaining=7) == [8, 9, 8]
    assert guesses.verify([8, 9, 8, 6]) == 4
    assert guesses.draft_token_ids == []


def test_draws_must_be_one_more_than_guesses() -> None:
    with pytest.raises(AssertionError, match="2 samples for 0 drafts"):
        JacobiDrafter(num_speculative_tokens=3, codes_per_side=2).verify([4, 4])


LENGTH, CODES = 4, 3


def conditional(before: tuple[int, ...]) -> np.ndarray:
    """The distribution of the next code; uneven, and different behind every beginning."""
    raw = np.random.default_rng([7, *before]).random(CODES) ** 3 + 0.02
    return raw / raw.sum()


def drawn(before: tuple[int, ...], chance: float) -> int:
    return int(np.searchsorted(conditional(before).cumsum(), chance, side="right"))


def picture(chances: np.ndarray, window: int) -> tuple[tuple[int, ...], int]:
    """A picture and the steps it took."""
    guesses, codes, steps = JacobiDrafter(window, codes_per_side=2), (), 0
    while len(codes) < LENGTH:
        ahead = guesses.propose(codes, LENGTH - len(codes))
        line = [drawn((*codes, *ahead[:n]), chances[len(codes) + n]) for n in range(len(ahead) + 1)]
        codes = (*codes, *line[: guesses.verify(line)])
        steps += 1
    return codes, steps


@pytest.mark.parametrize("window", [1, 2, 8])
def test_all_pictures_come_as_often_as_their_probabilities_say(window: int) -> None:
    chance = np.random.default_rng(0)
    number = 4000
    chances = chance.random((number, LENGTH))
    made = [picture(row, window) for row in chances]
    found = Counter(codes for codes, _ in made)
    expected = {
        codes: number * np.prod([conditional(codes[:n])[codes[n]] for n in range(LENGTH)])
        for codes in product(range(CODES), repeat=LENGTH)
    }
    # Chi-square over the 81 pictures, the rarest taken together; its mean is the number of cells
    # less one, and four standard deviations more is once in thousands of seeds.
    common = [codes for codes, count in expected.items() if count >= 5]
    cells = [(found[codes], expected[codes]) for codes in common]
    cells.append((number - sum(f for f, _ in cells), number - sum(e for _, e in cells)))
    square = sum((f - e) ** 2 / e for f, e in cells)
    assert square < len(cells) - 1 + 4 * (2 * (len(cells) - 1)) ** 0.5
    # And more than that: each is the picture that one code a step gives, in fewer steps.
    assert [codes for codes, _ in made] == [picture(row, 0)[0] for row in chances]
    assert sum(steps for _, steps in made) < 0.9 * LENGTH * number


def followed(engine: Engine, requests: list[Request]) -> tuple[list[RequestState], int]:
    """The states of all requests, and the steps they took."""
    states, steps = engine.submit_all(requests), 0
    while not engine.is_idle:
        engine.step()
        steps += 1
    return states, steps


@pytest.mark.parametrize("chunk", [512, 3])
def test_a_batch_where_some_guess_and_some_do_not_says_what_it_says_without(
    decoder: Decoder, chunk: int
) -> None:
    v = Vocabulary(num_codes=16, num_text=300)
    engine = Engine(decoder, v, 16, config=EngineConfig(prefill_chunk_size=chunk))
    prompts = [(0, 30, 31), (0, 40, v.begin_image, 4, 5, 6), (0, v.begin_image, *range(4, 20), 20)]
    scales = [(1.0, 1.0), (3.0, 1.2), (2.0, 2.0)]
    plain, guessing = [], []
    for number, (ids, (text, image)) in enumerate(product(prompts, scales)):
        rules = ImageSampling(temperature=0.4, guidance_scale=text, image_guidance_scale=image)
        window = (0, 1, 5, 40)[number % 4]
        one = Request(
            prompt_token_ids=ids, image=rules, seed=number, max_new_tokens=40, image_first=True
        )
        plain.append(one)
        guessing.append(replace(one, image=replace(rules, num_speculative_tokens=window)))
    without, many = followed(engine, plain)
    found, fewer = followed(engine, guessing)
    assert [state.output_token_ids for state in found] == [
        state.output_token_ids for state in without
    ]
    for one, other in zip(found, without, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=1e-4)
    assert fewer <= many
    assert engine.stats.num_reserved_tokens == 0


def test_a_picture_of_one_colour_takes_few_steps(decoder: Decoder) -> None:
    v = Vocabulary(num_codes=16, num_text=300)
    engine = Engine(decoder, v, 16)
    # Drawn from one id alone, every code is the same, and every guess is right.
    rules = ImageSampling(
        temperature=0.0, num_speculative_tokens=5, guidance_scale=1.0, image_guidance_scale=1.0
    )
    engine.sampler.vocab_slices.image_logits = lambda hidden: torch.eye(16)[3].expand(
        len(hidden), -1
    )  # type: ignore[method-assign]
    one = Request(
        prompt_token_ids=(0,), image=rules, modality="image", max_images=1, max_new_tokens=18
    )
    (state,), steps = followed(engine, [one])
    assert state.output_token_ids == [v.begin_image, *[v.code_to_id(3)] * 16, v.end_image]
    # The first code alone, twice six, and the three that are left.
    assert steps == 1 + 2 + 1


def test_a_window_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(GenerationError) as caught:
        ImageSampling(num_speculative_tokens=-1)
    assert str(caught.value) == (
        "num_speculative_tokens=-1; expected at least 0, the image tokens to draft per step."
    )
