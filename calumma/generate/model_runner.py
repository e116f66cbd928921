"""Reads the new ids of many rows in one call of the decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from calumma.generate.cuda_graphs import Captured
from calumma.generate.request import RequestState, SequenceState
from calumma.generate.step_output import put_in, sent
from calumma.model.decoder import Decoder
from calumma.model.kv_cache import KVCache, SequenceChunk

DECODING = 8
"""A request with at most so many unread ids in each row, guesses aside, is decoding, not reading
its prompt."""

SHARED = 16
"""From so many equal ids on, a row takes over what another one has read."""

Plan = list[tuple[SequenceState, int]]
"""Rows, and how many of its unread ids each reads."""


class Reader:
    """A decoder and its cache. Rows may stand at any place, and read any number of ids."""

    def __init__(
        self, decoder: Decoder, num_slots: int, latest: Tensor, *, captured: bool = False
    ) -> None:
        """Make a cache.

        Args:
            decoder: that reads.
            num_slots: of the cache.
            latest: [seats] int64 on the decoder's device, the id that was drawn last at each seat.
            captured: whether steps of one id a row are captured.
        """
        self.decoder, self.latest = decoder, latest
        self.device = decoder.embedding.weight.device
        lay_by_columns(decoder)
        like, ranks = decoder.embedding.weight, decoder.ranks
        # A captured step wants a slot of its own, behind those of the rows.
        self.cache = KVCache(decoder.config, num_slots + captured, like, tp_size=ranks)
        self._captured = Captured(decoder, self.cache, latest) if captured else None

    def read(self, plan: Plan) -> Tensor:
        """Read some of each row's unread ids; [N, M], what the head reads behind every one."""
        if self._captured is not None and all(number == 1 for _, number in plan):
            return self._captured.read([row for row, _ in plan])
        pieces = [
            SequenceChunk(row.start_slot, row.num_computed_tokens, number) for row, number in plan
        ]
        new = [
            id_
            for row, number in plan
            for id_ in row.token_ids[row.num_computed_tokens : row.num_computed_tokens + number]
        ]
        ids = sent(torch.tensor([new]), self.device)
        if min(new) < 0:
            ids = put_in(ids, self.latest)
        hidden = self.decoder.hidden(ids, cache=self.cache, pieces=pieces)
        for row, number in plan:
            row.num_computed_tokens += number
        return hidden[0]

    def begin(self, row: SequenceState, earlier: Sequence[SequenceState]) -> bool:
        """Give an unread row what it has in common with an earlier one; whether it may read.

        It may not while the earlier row is still reading what both begin with: soon it can have it.
        """
        start = row.token_ids[:SHARED]
        alike = [other for other in earlier if other.token_ids[:SHARED] == start]
        common, source = max(
            ((_common(row.token_ids, other.token_ids), other) for other in alike),
            key=lambda found: found[0],
            default=(0, row),
        )
        # The last id is read by itself: what stands behind it is expected.
        common = min(common, len(row.token_ids) - 1)
        if common < SHARED:
            return True
        if source.num_computed_tokens < common:
            return False
        self.cache.copy_prefix(source.start_slot, row.start_slot, count=common)
        row.num_computed_tokens = common
        return True


def plan_step(
    works: Sequence[RequestState], ended: Iterable[SequenceState], reader: Reader, chunk: int
) -> tuple[Plan, list[RequestState]]:
    """What to read in a step: all that is decoding, and of prompts so many ids, in their order.

    A request chooses when all its rows are read to their ends; until then each keeps one id
    unread, so that all of them end in the same step. One that has nothing to read waits for an id
    that is still being drawn.

    Args:
        works: those that run, in the order they came.
        ended: rows of others that a new row may begin like.
        reader: of all rows.
        chunk: ids of prompts.

    Returns:
        The plan, and the works that can choose behind it.
    """
    plan: Plan = []
    ready: list[RequestState] = []
    earlier = list(ended)
    for work in works:
        free = []
        for row in work.sequences:
            if row.num_computed_tokens or reader.begin(row, earlier):
                free.append(row)
            earlier.append(row)
        if not work.cond.num_uncomputed_tokens:
            continue
        decoding = all(
            row.num_uncomputed_tokens - work.num_draft_tokens <= DECODING for row in free
        )
        unread = 0 if decoding else sum(row.num_uncomputed_tokens for row in free)
        if len(free) == len(work.sequences) and unread <= chunk:
            plan += [(row, row.num_uncomputed_tokens) for row in free]
            ready.append(work)
            chunk -= unread
            continue
        for row in free:
            count = min(row.num_uncomputed_tokens - 1, chunk)
            if count:
                plan.append((row, count))
            chunk -= count
    return plan, ready


def _common(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many ids two sequences begin with in common."""
    for number, (one, other) in enumerate(zip(ids, others, strict=False)):
        if one != other:
            return number
    return min(len(ids), len(others))


def lay_by_columns(decoder: nn.Module) -> None:
    """Store a CPU's float32 matrices column by column, where nobody trains them; values stay.

    MKL's product of a few rows with a matrix stored by rows reads all of it anew for every three
    rows, up to 15. By columns it does not: 13 rows take half the time or less, one row the same,
    two and three a seventh more (dev/log.md).
    """
    for layer in decoder.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
            weight = layer.weight.data
            if type(weight) is Tensor and not weight.is_cuda and weight.dtype == torch.float32:
                layer.weight.data = weight.t().contiguous().t()
