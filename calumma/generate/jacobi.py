"""Several image codes a step, the very ones that one a step would give.

The chance of every draw is a function of the seed and the place alone, so the code at a place is a
function of the codes before it: a picture is the fixed point of drawing all its places at once.
Guesses for the next codes are read together with the newest one, and behind each stands what is
drawn there if the guesses before it are right. Those that agree are codes; the first that does not
gives way to what was drawn in its place, and what was drawn behind it are the next guesses.

Nothing is accepted by a chance of its own, so that the distribution cannot change: with another
window, or none, a request's ids are the same, but where logits tie within the rounding of floats.

Source: speculative Jacobi decoding (arXiv:2410.01699), with the draws of two iterations coupled by
a chance that stays (as in MC-SJD, arXiv:2510.24211, which compares couplings).
"""

from __future__ import annotations

from collections.abc import Sequence


class JacobiDrafter:
    """What the next codes of the open image may be."""

    def __init__(self, window: int, codes_per_side: int) -> None:
        """None yet.

        Args:
            window: guesses that are read in a step.
            codes_per_side: of an image's grid.
        """
        self.window, self.codes_per_side = window, codes_per_side
        self.draft_token_ids: list[int] = []
        """Guesses that have been read or drawn, for the places behind the next one."""

    def propose(self, image: Sequence[int], owed: int) -> list[int]:
        """The guesses to read behind the codes that are known.

        A place for which nothing was drawn yet is guessed to be as the one above it, in the first
        row as the one before it: pictures have areas.

        Args:
            image: ids of the open image's codes so far, row by row; where there is none, nothing
                is guessed.
            owed: codes that it still needs; the last one has no guess behind it.

        Returns:
            As many ids as the window has, or as there is room for.
        """
        wanted = min(self.window, owed - 1) if image else 0
        line = [*image, *self.draft_token_ids]
        while len(line) < len(image) + wanted:
            line.append(
                line[-self.codes_per_side] if len(line) >= self.codes_per_side else line[-1]
            )
        self.draft_token_ids = line[len(image) : len(image) + wanted]
        return self.draft_token_ids

    def verify(self, drawn: Sequence[int]) -> int:
        """Take in what was drawn behind the newest code and behind each guess.

        Args:
            drawn: one id more than `ahead` gave.

        Returns:
            How many of them, from the first on, are codes of the image: at least one. The others
            are guesses from now on.
        """
        assert len(drawn) == len(self.draft_token_ids) + 1, (
            f"{len(drawn)} draws for {len(self.draft_token_ids)} guesses"
        )
        stand = 1
        while stand < len(drawn) and drawn[stand - 1] == self.draft_token_ids[stand - 1]:
            stand += 1
        self.draft_token_ids = list(drawn[stand:])
        return stand
