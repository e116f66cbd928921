"""Speculative decoding of image tokens: several codes per step, equal to one code per step.

The random number of every sample is a function of the seed and the position alone, so the code at a
position is a function of the codes before it: an image is the fixed point of sampling all its
positions at once (Jacobi iteration). Draft codes are computed together with the newest code, and
after each of them the code is sampled that follows if the drafts before it are right. Drafts that
agree are accepted; the first that does not is replaced by the code that was sampled, and the
codes sampled after it are the next drafts.

No draft is accepted by a random test of its own, so the distribution cannot change: with any number
of speculative tokens, or none, a request gets the same tokens, except where logits tie within the
rounding of floats.

Source: speculative Jacobi decoding (arXiv:2410.01699), with the samples of two iterations coupled
by a fixed random number (as in MC-SJD, arXiv:2510.24211, which compares couplings).
"""

from collections.abc import Sequence


class JacobiDrafter:
    """Drafts the next codes of the open image."""

    def __init__(self, num_speculative_tokens: int, codes_per_side: int) -> None:
        self.num_speculative_tokens, self.codes_per_side = num_speculative_tokens, codes_per_side
        self.draft_token_ids: list[int] = []
        """Tokens drafted or sampled for the positions after the next one."""

    def propose(self, image: Sequence[int], num_codes_remaining: int) -> list[int]:
        """Draft up to `num_speculative_tokens` tokens after the known codes of the image.

        A position without a sample is drafted as a copy of the cell above, in the first grid row
        of the cell before: images have areas. Nothing is drafted before the first code, or after
        the last.
        """
        count = min(self.num_speculative_tokens, num_codes_remaining - 1) if image else 0
        cells = [*image, *self.draft_token_ids]
        while len(cells) < len(image) + count:
            above = len(cells) - self.codes_per_side
            cells.append(cells[above] if above >= 0 else cells[-1])
        self.draft_token_ids = cells[len(image) : len(image) + count]
        return self.draft_token_ids

    def verify(self, sampled: Sequence[int]) -> int:
        """Compare the drafts with the tokens sampled after the newest token and after each draft.

        Returns how many of the sampled tokens, from the first on, belong to the image: at least
        one. The others become drafts.
        """
        drafts = self.draft_token_ids
        assert len(sampled) == len(drafts) + 1, f"{len(sampled)} samples for {len(drafts)} drafts"
        accepted = 1
        while accepted < len(sampled) and sampled[accepted - 1] == drafts[accepted - 1]:
            accepted += 1
        self.draft_token_ids = list(sampled[accepted:])
        return accepted
