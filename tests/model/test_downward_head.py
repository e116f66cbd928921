"""Downward head: diagonals of a grid, and the combination of two neighbors."""

from itertools import pairwise

import torch

from calumma.model.downward_head import DownwardHead, diagonals


def test_every_cell_has_its_neighbors_on_the_diagonal_before() -> None:
    rows, columns = 3, 5
    found = diagonals(rows, columns)
    assert len(found) == rows + columns - 1
    assert sorted(cell for cells in found for cell in cells) == list(range(rows * columns))
    for before, cells in pairwise(found):
        for cell in cells:
            assert cell % columns == 0 or cell - 1 in before
            assert cell < columns or cell - columns in before


def test_an_untrained_head_returns_the_mean_of_the_neighbors_or_the_only_one() -> None:
    head = DownwardHead(4)
    head.load_state_dict(dict(head.initial_weights(0)))
    left, above = torch.randn(3, 4), torch.randn(3, 4)
    has_left, has_above = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    found = head(left, above, has_left, has_above)
    expected = torch.stack([(left[0] + above[0]) / 2, left[1], above[2]])
    torch.testing.assert_close(found, expected)


def test_a_missing_neighbor_has_no_influence() -> None:
    head = DownwardHead(4)
    torch.nn.init.normal_(head.output.weight)
    left, above = torch.randn(2, 4), torch.randn(2, 4)
    has_left, has_above = torch.tensor([True, False]), torch.tensor([False, True])
    found = head(left, above, has_left, has_above)
    other_left = left * has_left[:, None] + 9 * ~has_left[:, None]
    other_above = above * has_above[:, None] - 5 * ~has_above[:, None]
    changed = head(other_left, other_above, has_left, has_above)
    assert torch.equal(found, changed)
    assert not torch.allclose(found, torch.where(has_left[:, None], left, above))
