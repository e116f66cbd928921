"""Logits to ids, by hand and by counting."""

from __future__ import annotations

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


def limits(*rules: dict[str, Any]) -> SamplingTensors:
    """The limits of rows; what is not said is none."""
    none: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}
    return SamplingTensors.build([TextSampling(**(none | rule)) for rule in rules], CPU)


def drawn(shares: list[float], chances: list[float], **rule: Any) -> list[int]:
    rows = torch.tensor(shares).log().expand(len(chances), -1)
    return sample_tokens(rows, limits(*[rule] * len(chances)), torch.tensor(chances)).tolist()


def kept(shares: list[float], **rule: Any) -> list[int]:
    """The ids that a rule leaves."""
    made = truncated_probs(torch.tensor([shares]).log(), limits(rule))
    return made[0].nonzero().flatten().tolist()


def test_the_chance_runs_through_the_ids_in_their_order() -> None:
    found = drawn([0.2, 0.5, 0.3], [0.0, 0.19, 0.21, 0.69, 0.71, 0.999999])
    assert found == [0, 0, 1, 1, 2, 2]


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    # 0.5 alone is too little for 0.6; 0.5 and 0.3 are enough: shares 5/8 and 3/8.
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.62, 0.63, 0.999999], top_p=0.6) == [1, 1, 2, 2]
    assert kept([0.2, 0.5, 0.3], top_p=0.4) == [1]
    assert kept([0.2, 0.5, 0.3], top_p=0.81) == [0, 1, 2]


def test_top_k_keeps_the_likeliest_and_those_as_likely_as_the_last() -> None:
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2) == [1, 3]
    assert kept([0.2, 0.4, 0.2, 0.2], top_k=2) == [0, 1, 2, 3]
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=9) == [0, 1, 2, 3]


def test_min_p_is_a_share_of_the_likeliest() -> None:
    assert kept([0.1, 0.5, 0.26, 0.14], min_p=0.5) == [1, 2]
    assert kept([0.1, 0.5, 0.26, 0.14], min_p=1.0) == [1]


def test_top_p_is_of_what_the_rules_before_it_leave() -> None:
    # Of all, 0.4 is not 0.55; of the 0.7 that two ids hold, it is.
    assert kept([0.1, 0.4, 0.2, 0.3], top_p=0.55) == [1, 3]
    assert kept([0.1, 0.4, 0.2, 0.3], top_k=2, top_p=0.55) == [1]
    assert kept([0.1, 0.4, 0.2, 0.3], min_p=0.75, top_p=0.55) == [1]
    # Temperature comes first of all: roots of 0.64, 0.04, ... are as 8 to 2 to 2.
    assert kept([0.64, 0.04, 0.04], temperature=2.0, top_p=0.7) == [0, 1, 2]


def test_no_temperature_is_greedy_and_ties_go_to_the_lower_id() -> None:
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.999999], temperature=0.0) == [1, 1]
    assert drawn([0.2, 0.4, 0.4], [0.0, 0.999999], temperature=0.0) == [1, 1]


@pytest.mark.parametrize("tiny", [5e-324, 1e-39, 1e-7])
def test_rules_too_small_for_32_bits_are_the_limit_they_come_near_to(tiny: float) -> None:
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.999999], temperature=tiny) == [1, 1]
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.999999], top_p=tiny) == [1, 1]
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.999999], top_p=tiny, temperature=tiny) == [1, 1]


def test_temperature_flattens() -> None:
    # Square roots of 0.8 and 0.2 are as 2 to 1.
    assert drawn([0.8, 0.2], [0.66, 0.67], temperature=2.0) == [0, 1]


def test_ids_are_drawn_as_often_as_their_shares_say() -> None:
    places = torch.arange(20_000)
    uniform = uniform_from_seed(torch.zeros_like(places), places).tolist()
    found = torch.tensor(drawn([0.2, 0.5, 0.3], uniform))
    shares = found.bincount(minlength=3) / len(found)
    assert torch.allclose(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.015)


@pytest.mark.parametrize("rule", [{}, {"top_p": 0.99}, {"top_k": 3}])
def test_what_is_masked_is_never_drawn(rule: dict[str, Any]) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0, -torch.inf]])
    for chance in (0.0, 0.5, 0.9999999, 1.0):
        assert sample_tokens(logits, limits(rule), torch.tensor([chance])).item() in (1, 3)


def test_each_row_has_its_own_rules() -> None:
    logits = torch.tensor([[0.0, 1.0, -9.0]]).expand(4, -1)
    rules = limits({"temperature": 0.0}, {}, {"top_p": 0.5}, {"top_k": 1})
    assert sample_tokens(logits, rules, torch.tensor([0.01] * 4)).tolist() == [1, 0, 1, 1]


def test_a_row_s_draw_does_not_know_its_neighbours() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 500)
    rules = [{"top_p": 0.3}, {}, {"top_k": 7}, {"min_p": 0.1}, {"temperature": 0.0}, {"top_p": 1.0}]
    chance = torch.rand(6)
    together = sample_tokens(logits, limits(*rules), chance)
    for row, rule in enumerate(rules):
        alone = sample_tokens(logits[row : row + 1], limits(rule), chance[row : row + 1])
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


def test_a_chance_is_a_function_of_seed_and_place() -> None:
    seeds, places = torch.tensor([0, 0, 1, -(2**63)]), torch.tensor([0, 1, 0, 4095])
    made = uniform_from_seed(seeds, places)
    assert torch.equal(uniform_from_seed(seeds[2:], places[2:]), made[2:])
    assert len(set(made.tolist())) == 4
    assert bool(((made >= 0) & (made < 1)).all())


def test_chances_are_splitmix64() -> None:
    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    assert mix(0) == 0xE220A8397B1DCDAF  # the generator's first number from seed 0
    for seed, place in ((0, 0), (7, 1), (2**62, 900)):
        expected = (mix((mix(seed) + place) % 2**64) >> 40) / 2**24
        assert uniform_from_seed(torch.tensor([seed]), torch.tensor([place])).item() == expected


def test_chances_are_even_and_do_not_follow_each_other() -> None:
    places = torch.arange(100)
    for made in (uniform_from_seed(places, 0 * places), uniform_from_seed(0 * places, places)):
        assert abs(made.mean().item() - 0.5) < 0.1
    grid = torch.stack(
        [uniform_from_seed(torch.full((1000,), s), torch.arange(1000)) for s in range(20)]
    )
    assert abs(torch.corrcoef(grid).fill_diagonal_(0)).max() < 0.15
    assert abs(torch.corrcoef(torch.stack([grid[0, :-1], grid[0, 1:]]))[0, 1]) < 0.1
