"""Sampling operations, by hand and by counting."""

from typing import Any

import pytest
import torch

from calumma.generate.params import TextSampling
from calumma.generate.sampling_ops import (
    SamplingTensors,
    apply_cfg,
    apply_repetition_penalty,
    sample_tokens,
    truncated_probs,
    uniform_from_seed,
)

CPU = torch.device("cpu")


def tensors(*rows: dict[str, Any]) -> SamplingTensors:
    """Return the parameters of rows, by default without truncation."""
    default: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}
    return SamplingTensors.build([TextSampling(**(default | row)) for row in rows], CPU)


def sample(probs: list[float], uniform: list[float], **row_params: Any) -> list[int]:
    rows = torch.tensor(probs).log().expand(len(uniform), -1)
    return sample_tokens(rows, tensors(*[row_params] * len(uniform)), torch.tensor(uniform)).tolist()


def kept(probs: list[float], **row_params: Any) -> list[int]:
    """Return the tokens that truncation keeps."""
    made = truncated_probs(torch.tensor([probs]).log(), tensors(row_params))
    return made[0].nonzero().flatten().tolist()


def test_sampling_inverts_the_cumulative_distribution() -> None:
    found = sample([0.2, 0.5, 0.3], [0.0, 0.19, 0.21, 0.69, 0.71, 0.999999])
    assert found == [0, 0, 1, 1, 2, 2]


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    # 0.5 alone is too little for 0.6; 0.5 and 0.3 are enough: probs 5/8 and 3/8.
    assert sample([0.2, 0.5, 0.3], [0.0, 0.62, 0.63, 0.999999], top_p=0.6) == [1, 1, 2, 2]
    assert kept([0.2, 0.5, 0.3], top_p=0.4) == [1]
    assert kept([0.2, 0.5, 0.3], top_p=0.81) == [0, 1, 2]


def test_top_k_keeps_ties() -> None:
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2) == [1, 3]
    assert kept([0.2, 0.4, 0.2, 0.2], top_k=2) == [0, 1, 2, 3]
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=9) == [0, 1, 2, 3]


def test_min_p_is_relative_to_the_most_likely_token() -> None:
    assert kept([0.1, 0.5, 0.26, 0.14], min_p=0.5) == [1, 2]
    assert kept([0.1, 0.5, 0.26, 0.14], min_p=1.0) == [1]


def test_top_p_applies_to_what_the_other_parameters_keep() -> None:
    # 0.4 is less than 0.55 of all, but more than 0.55 of the 0.7 that two tokens have.
    assert kept([0.1, 0.4, 0.2, 0.3], top_p=0.55) == [1, 3]
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2, top_p=0.55) == [1]
    assert kept([0.1, 0.4, 0.2, 0.3], min_p=0.75, top_p=0.55) == [1]
    # Temperature comes first: square roots of 0.64, 0.04, ... are as 8 to 2 to 2.
    assert kept([0.64, 0.04, 0.04], temperature=2.0, top_p=0.7) == [0, 1, 2]


def test_temperature_zero_is_greedy_and_ties_go_to_the_lower_token() -> None:
    assert sample([0.2, 0.5, 0.3], [0.0, 0.999999], temperature=0.0) == [1, 1]
    assert sample([0.2, 0.4, 0.4], [0.0, 0.999999], temperature=0.0) == [1, 1]


@pytest.mark.parametrize("tiny", [5e-324, 1e-39, 1e-7])
def test_parameters_too_small_for_32_bits_are_their_limits(tiny: float) -> None:
    assert sample([0.2, 0.5, 0.3], [0.0, 0.999999], temperature=tiny) == [1, 1]
    assert sample([0.2, 0.5, 0.3], [0.0, 0.999999], top_p=tiny) == [1, 1]
    assert sample([0.2, 0.5, 0.3], [0.0, 0.999999], top_p=tiny, temperature=tiny) == [1, 1]


def test_temperature_flattens() -> None:
    # Square roots of 0.8 and 0.2 are as 2 to 1.
    assert sample([0.8, 0.2], [0.66, 0.67], temperature=2.0) == [0, 1]


def test_frequencies_are_the_probabilities() -> None:
    positions = torch.arange(20_000)
    uniform = uniform_from_seed(torch.zeros_like(positions), positions).tolist()
    found = torch.tensor(sample([0.2, 0.5, 0.3], uniform))
    probs = found.bincount(minlength=3) / len(found)
    assert torch.allclose(probs, torch.tensor([0.2, 0.5, 0.3]), atol=0.015)


@pytest.mark.parametrize("row_params", [{}, {"top_p": 0.99}, {"top_k": 3}])
def test_masked_tokens_are_never_sampled(row_params: dict[str, Any]) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0, -torch.inf]])
    for uniform in (0.0, 0.5, 0.9999999, 1.0):
        assert sample_tokens(logits, tensors(row_params), torch.tensor([uniform])).item() in (1, 3)


def test_each_row_has_its_own_parameters() -> None:
    logits = torch.tensor([[0.0, 1.0, -9.0]]).expand(4, -1)
    params = tensors({"temperature": 0.0}, {}, {"top_p": 0.5}, {"top_k": 1})
    assert sample_tokens(logits, params, torch.tensor([0.01] * 4)).tolist() == [1, 0, 1, 1]


def test_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 500)
    params = [{"top_p": 0.3}, {}, {"top_k": 7}, {"min_p": 0.1}, {"temperature": 0.0}, {"top_p": 1.0}]
    uniform = torch.rand(6)
    together = sample_tokens(logits, tensors(*params), uniform)
    for row, row_params in enumerate(params):
        alone = sample_tokens(logits[row : row + 1], tensors(row_params), uniform[row : row + 1])
        assert alone.item() == together[row].item()


def test_guidance_by_hand() -> None:
    full, images, none = (torch.tensor([[x], [x]]) for x in (4.0, 2.0, 1.0))
    made = apply_cfg(full, images, none, torch.tensor([(3.0, 1.2), (1.0, 1.0)]))
    assert torch.allclose(made, torch.tensor([[1 + 1.2 + 6.0], [4.0]]))
    made = apply_cfg(full, none, none, torch.tensor([(2.0, 9.0), (2.0, 1.0)]))
    assert made.flatten().tolist() == [7.0, 7.0]


def test_the_penalty_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 3.0, -torch.inf], [2.0, -2.0, 3.0, 1.0]])
    seen = torch.tensor([[True, True, False, True], [True, False, True, False]])
    made = apply_repetition_penalty(logits, seen, torch.tensor([2.0, 0.5]))
    assert made.tolist() == [[1.0, -4.0, 3.0, -torch.inf], [4.0, -2.0, 6.0, 1.0]]


def test_random_numbers_are_a_function_of_seed_and_position() -> None:
    seeds, positions = torch.tensor([0, 0, 1, -(2**63)]), torch.tensor([0, 1, 0, 4095])
    made = uniform_from_seed(seeds, positions)
    assert torch.equal(uniform_from_seed(seeds[2:], positions[2:]), made[2:])
    assert len(set(made.tolist())) == 4
    assert bool(((made >= 0) & (made < 1)).all())


def test_random_numbers_are_splitmix64() -> None:
    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    assert mix(0) == 0xE220A8397B1DCDAF  # the generator's first number from seed 0
    for seed, position in ((0, 0), (7, 1), (2**62, 900)):
        expected = (mix((mix(seed) + position) % 2**64) >> 40) / 2**24
        assert uniform_from_seed(torch.tensor([seed]), torch.tensor([position])).item() == expected


def test_chances_are_even_and_do_not_follow_each_other() -> None:
    positions = torch.arange(100)
    for made in (uniform_from_seed(positions, 0 * positions), uniform_from_seed(0 * positions, positions)):
        assert abs(made.mean().item() - 0.5) < 0.1
    grid = torch.stack([uniform_from_seed(torch.full((1000,), s), torch.arange(1000)) for s in range(20)])
    assert abs(torch.corrcoef(grid).fill_diagonal_(0)).max() < 0.15
    assert abs(torch.corrcoef(torch.stack([grid[0, :-1], grid[0, 1:]]))[0, 1]) < 0.1
