"""Reads the new ids of many rows in one call of the decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from calumma.generate.cuda_graphs import CUDAGraphRunner
from calumma.generate.request import RequestState, SequenceState
from calumma.generate.step_output import resolve_placeholders, to_device_async
from calumma.model.attention_backends import CachedAttention
from calumma.model.decoder import Decoder
from calumma.model.kv_cache import KVCache, SequenceChunk

MAX_DECODE_TOKENS = 8
"""A request with at most so many unread ids in each row, guesses aside, is decoding, not reading
its prompt."""

MIN_PREFIX_TOKENS = 16
"""From so many equal ids on, a row takes over what another one has read."""

ScheduledTokens = list[tuple[SequenceState, int]]
"""Rows, and how many of its unread ids each reads."""


class ModelRunner:
    """A decoder and its cache. Rows may stand at any place, and read any number of ids."""

    def __init__(
        self, decoder: Decoder, num_slots: int, last_token_ids: Tensor, *, cuda_graphs: bool = False
    ) -> None:
        """Make a cache.

        Args:
            decoder: that reads.
            num_slots: of the cache.
            latest: [seats] int64 on the decoder's device, the id that was drawn last at each seat.
            captured: whether steps of one id a row are captured.
        """
        self.decoder, self.last_token_ids = decoder, last_token_ids
        self.device = decoder.embedding.weight.device
        to_column_major(decoder)
        weight = decoder.embedding.weight
        # A captured step wants a slot of its own, behind those of the rows.
        self.kv_cache = KVCache(
            decoder.config,
            num_slots + cuda_graphs,
            dtype=weight.dtype,
            device=weight.device,
            tp_size=decoder.tp_size,
        )
        self._cuda_graphs = (
            CUDAGraphRunner(decoder, self.kv_cache, last_token_ids) if cuda_graphs else None
        )

    def execute(self, plan: ScheduledTokens) -> Tensor:
        """Read some of each row's unread ids; [N, M], what the head reads behind every one."""
        if self._cuda_graphs is not None and all(number == 1 for _, number in plan):
            return self._cuda_graphs.execute([row for row, _ in plan])
        pieces = [
            SequenceChunk(row.start_slot, row.num_computed_tokens, number) for row, number in plan
        ]
        new = [
            id_
            for row, number in plan
            for id_ in row.token_ids[row.num_computed_tokens : row.num_computed_tokens + number]
        ]
        ids = to_device_async(torch.tensor([new]), self.device)
        if min(new) < 0:
            ids = resolve_placeholders(ids, self.last_token_ids)
        metadata = CachedAttention.build_metadata(self.kv_cache, pieces, self.device)
        hidden = self.decoder.hidden_states(ids, metadata)
        for row, number in plan:
            row.num_computed_tokens += number
        return hidden[0]

    def reuse_prefix(self, row: SequenceState, earlier: Sequence[SequenceState]) -> bool:
        """Give an unread row what it has in common with an earlier one; whether it may read.

        It may not while the earlier row is still reading what both begin with: soon it can have it.
        """
        start = row.token_ids[:MIN_PREFIX_TOKENS]
        alike = [other for other in earlier if other.token_ids[:MIN_PREFIX_TOKENS] == start]
        common, source = max(
            ((_common_prefix_length(row.token_ids, other.token_ids), other) for other in alike),
            key=lambda found: found[0],
            default=(0, row),
        )
        # The last id is read by itself: what stands behind it is expected.
        common = min(common, len(row.token_ids) - 1)
        if common < MIN_PREFIX_TOKENS:
            return True
        if source.num_computed_tokens < common:
            return False
        self.kv_cache.copy_prefix(source.start_slot, row.start_slot, count=common)
        row.num_computed_tokens = common
        return True


def schedule(
    works: Sequence[RequestState], ended: Iterable[SequenceState], reader: ModelRunner, chunk: int
) -> tuple[ScheduledTokens, list[RequestState]]:
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
    plan: ScheduledTokens = []
    ready: list[RequestState] = []
    earlier = list(ended)
    for work in works:
        free = []
        for row in work.sequences:
            if row.num_computed_tokens or reader.reuse_prefix(row, earlier):
                free.append(row)
            earlier.append(row)
        if not work.cond.num_uncomputed_tokens:
            continue
        decoding = all(
            row.num_uncomputed_tokens - work.num_draft_tokens <= MAX_DECODE_TOKENS for row in free
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


def _common_prefix_length(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many ids two sequences begin with in common."""
    for number, (one, other) in enumerate(zip(ids, others, strict=False)):
        if one != other:
            return number
    return min(len(ids), len(others))


def to_column_major(decoder: nn.Module) -> None:
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
