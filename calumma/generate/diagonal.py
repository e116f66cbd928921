"""Generation of an image diagonal by diagonal, with a model's downward head.

All codes of an anti-diagonal are sampled in one step, from the codes of the diagonals before: H x W
codes take H + W - 1 steps. The random number of a code is that of reading order, and so are the
tokens of the output, which gets them when the image is complete. Keys and values are those of a
causal sequence in the order of the diagonals, so no other request takes them over as a prefix.
"""

from collections.abc import Sequence

from calumma.generate.sequence_state import SequenceState
from calumma.model.downward_head import diagonals

SampledToken = tuple[int, float, dict[int, float]]
"""A token, its log-probability, and the most likely tokens with theirs."""


class DiagonalImage:
    """The open image of a request, as far as it is generated."""

    def __init__(self, rows: int, columns: int, sequences: Sequence[SequenceState]) -> None:
        """Begin an image; the sequences end with begin-of-image."""
        self.columns = columns
        self._diagonals = diagonals(rows, columns)
        self._codes: dict[int, SampledToken] = {}
        order = [cell for cells in self._diagonals for cell in cells]
        for sequence in sequences:
            sequence.order_start, sequence.order = len(sequence.token_ids), order
            if sequence.num_shareable is None:
                sequence.num_shareable = sequence.order_start
        self._number = 0

    @property
    def cells(self) -> list[int]:
        """Cells of the next diagonal, as indices in reading order, from the top down."""
        return self._diagonals[self._number]

    @property
    def num_previous(self) -> int:
        """Tokens that the last step appended: those of the diagonal before, or begin-of-image."""
        return len(self._diagonals[self._number - 1]) if self._number else 1

    def neighbors(self) -> list[tuple[int | None, int | None]]:
        """Return for each cell how many tokens before the last one its left and upper neighbors are.

        The neighbor to the left of the first cell is begin-of-image; None where there is none.
        """
        if not self._number:
            return [(0, None)]
        previous = self._diagonals[self._number - 1]
        offsets = {cell: len(previous) - 1 - index for index, cell in enumerate(previous)}
        return [
            (offsets.get(cell - 1) if cell % self.columns else None, offsets.get(cell - self.columns))
            for cell in self.cells
        ]

    def accept(self, sequences: Sequence[SequenceState], sampled: Sequence[SampledToken]) -> list[SampledToken]:
        """Append the codes of a diagonal to the sequences.

        Returns:
            All codes of the image in reading order if it is complete, else none. The sequences are
            then without them, and count them as computed, but the last one, when they are appended.
        """
        self._codes |= zip(self.cells, sampled, strict=True)
        self._number += 1
        if self._number < len(self._diagonals):
            for sequence in sequences:
                sequence.token_ids += [id_ for id_, _, _ in sampled]
            return []
        for sequence in sequences:
            num_codes = sequence.num_computed_tokens - sequence.order_start
            sequence.truncate(sequence.order_start)
            sequence.order, sequence.num_accepted = (), num_codes
        return [self._codes[cell] for cell in range(len(self._codes))]
