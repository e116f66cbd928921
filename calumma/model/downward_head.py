"""Downward head: predicts an image code from the codes to its left and above.

With it an image of H x W codes is generated in H + W - 1 steps, one for each anti-diagonal: a code
on a diagonal has both its neighbors on the one before. The tokens of an image are computed in the
order of the diagonals, each at its position of reading order, so that plain causal attention shows
a token all earlier diagonals.

Source: FlashAR (arXiv:2605.09430), which adds a vertical head and a gate to a trained model.
Shapes: N codes, M model_dim.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_INITIAL_STD = 0.02
"""Standard deviation of the initial weights of the first matrix; the others are 0."""


class DownwardHead(nn.Module):
    """Combines the hidden states of two neighbors into one input of the output layer.

    A gate weights the neighbors; what they imply together is added.
    """

    def __init__(self, model_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * model_dim, 1, bias=False)
        self.both = nn.Linear(2 * model_dim, 2 * model_dim, bias=False)
        self.output = nn.Linear(2 * model_dim, model_dim, bias=False)

    def forward(self, left: Tensor, above: Tensor, has_left: Tensor, has_above: Tensor) -> Tensor:
        """Combine hidden states after the last norm.

        Args:
            left: [N, M] of the code to the left; of begin-of-image for the first code.
            above: [N, M] of the code above.
            has_left: [N] bool, False in the first column; `left` is then ignored.
            has_above: [N] bool, False in the first row.

        Returns:
            [N, M] inputs of the output layer.
        """
        left = left * has_left.unsqueeze(-1)
        above = above * has_above.unsqueeze(-1)
        neighbors = torch.cat([left, above], dim=-1)
        gate = torch.sigmoid(self.gate(neighbors))
        gate = torch.where((has_left & has_above).unsqueeze(-1), gate, 1.0)  # a missing neighbor is 0
        result: Tensor = gate * left + torch.where(has_left.unsqueeze(-1), 1 - gate, 1.0) * above
        return result + self.output(F.silu(self.both(neighbors)))

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Generate the initial weights, with which the head returns the mean of the neighbors."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            weights = torch.zeros(parameter.shape)
            yield name, weights.normal_(0.0, _INITIAL_STD, generator=generator) if name == "both.weight" else weights


def diagonals(rows: int, columns: int) -> list[list[int]]:
    """Return the cells of each anti-diagonal of a grid, as indices in reading order, from the top down.

    >>> diagonals(2, 3)
    [[0], [1, 3], [2, 4], [5]]
    """
    return [
        [row * columns + number - row for row in range(rows) if 0 <= number - row < columns]
        for number in range(rows + columns - 1)
    ]
