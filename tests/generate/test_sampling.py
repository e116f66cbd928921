"""Logits to ids, by hand and by counting."""

from __future__ import annotations

import torch

from calumma.generate.grammar import Grammar, Next
from calumma.generate.sampling import draw, guided, masks, penalise
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=4, num_text=5)


def drawn(shares: list[float], chances: list[float], heat: float, top_p: float) -> list[int]:
    rows = torch.tensor(shares).log().expand(len(chances), -1)
    same = torch.ones(len(chances))
    return draw(rows, same * heat, same * top_p, torch.tensor(chances)).tolist()


def test_the_chance_runs_through_the_ids_from_the_likeliest() -> None:
    chances = [0.0, 0.49, 0.51, 0.79, 0.81, 0.999999]
    assert drawn([0.2, 0.5, 0.3], chances, 1.0, 1.0) == [1, 1, 2, 2, 0, 0]


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    chances = [0.0, 0.61, 0.63, 0.999999]
    # 0.5 alone is too little for 0.6; 0.5 and 0.3 are enough: shares 5/8 and 3/8.
    assert drawn([0.2, 0.5, 0.3], chances, 1.0, 0.6) == [1, 1, 2, 2]
    assert drawn([0.2, 0.5, 0.3], chances, 1.0, 0.4) == [1, 1, 1, 1]


def test_no_temperature_is_greedy_and_ties_go_to_the_lower_id() -> None:
    assert drawn([0.2, 0.5, 0.3], [0.0, 0.999999], 0.0, 1.0) == [1, 1]
    assert drawn([0.2, 0.4, 0.4], [0.0, 0.999999], 0.0, 1.0) == [1, 1]


def test_temperature_flattens() -> None:
    # Square roots of 0.8 and 0.2 are as 2 to 1.
    assert drawn([0.8, 0.2], [0.66, 0.67], 2.0, 1.0) == [0, 1]


def test_ids_are_drawn_as_often_as_their_shares_say() -> None:
    chances = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    found = torch.tensor(drawn([0.2, 0.5, 0.3], chances.tolist(), 1.0, 1.0))
    shares = found.bincount(minlength=3) / len(found)
    assert torch.allclose(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.015)


def test_what_is_masked_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0]])
    for chance in (0.0, 0.5, 0.9999999, 1.0):
        one = torch.ones(1)
        assert draw(logits, one, one, one * chance).item() in (1, 3)


def test_each_row_has_its_own_rules() -> None:
    logits = torch.tensor([[0.0, 1.0]]).expand(3, -1)
    heat, top_p = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.5])
    assert draw(logits, heat, top_p, torch.tensor([0.99] * 3)).tolist() == [1, 0, 1]


def test_guidance_by_hand() -> None:
    full, image, none = torch.tensor([4.0]), torch.tensor([2.0]), torch.tensor([1.0])
    assert guided(full, image, none, (3.0, 1.2)).item() == torch.tensor(1 + 1.2 + 6.0)
    assert guided(full, image, none, (1.0, 1.0)).item() == 4
    assert guided(full, none, none, (2.0, 9.0)).item() == 7


def test_the_penalty_by_hand() -> None:
    logits = torch.tensor([2.0, -2.0, 3.0, -torch.inf])
    made = penalise(logits, torch.tensor([0, 1, 3]), 2.0)
    assert made.tolist() == [1.0, -4.0, 3.0, -torch.inf]
    assert penalise(logits, torch.tensor([0]), 1.0) is logits
    assert logits.tolist() == [2.0, -2.0, 3.0, -torch.inf]


def test_masks_allow_what_the_grammar_allows() -> None:
    made = masks(V, torch.device("cpu"))
    states = {
        Next.TEXT: Grammar(V, 2, room=1),
        Next.TEXT_OR_IMAGE: Grammar(V, 2, room=9),
        Next.BEGIN: Grammar(V, 2, room=9, image_first=True),
        Next.IMAGE_OR_STOP: Grammar(V, 2, room=9, images_only=True),
        Next.STOP: Grammar(V, 2, room=9, max_images=0, images_only=True),
        Next.CODE: Grammar(V, 2, room=9, codes_owed=1),
        Next.END: Grammar(V, 2, room=9, codes_owed=0),
    }
    for kind, grammar in states.items():
        assert grammar.expected is kind
        assert made[kind].tolist() == [grammar.allows(id_) for id_ in range(V.size)]
