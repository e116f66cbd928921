"""Model runner: computes the scheduled tokens of many sequences in one forward call."""

import torch
from torch import Tensor, nn

from calumma.generate.cuda_graphs import CUDAGraphRunner
from calumma.generate.scheduler import ScheduledTokens
from calumma.generate.sequence_state import SequenceState
from calumma.generate.step_output import resolve_placeholders
from calumma.model.attention_backends import CachedAttention, VarlenCacheAttention
from calumma.model.decoder import Decoder
from calumma.model.kv_cache import KVCache, SequenceChunk, to_device_async
from calumma.model.lora import AdapterBatch
from calumma.model.varlen_attention import has_flash_kernel


class ModelRunner:
    """A decoder and its KV cache. Prefill and decode of any sequences share a call."""

    def __init__(
        self,
        decoder: Decoder,
        num_slots: int,
        last_token_ids: Tensor,
        *,
        cuda_graphs: bool = False,
        adapters: AdapterBatch | None = None,
    ) -> None:
        """Allocate a KV cache of `num_slots` tokens; `cuda_graphs` captures decode steps.

        `last_token_ids` are [batch slots] int64 on the decoder's device, for placeholders. With
        `cuda_graphs`, and wherever it is one kernel, attention is one call for all sequences.
        """
        self.decoder, self.last_token_ids, self._adapters = decoder, last_token_ids, adapters
        weight = decoder.embedding.weight
        self.device = weight.device
        to_column_major(decoder)
        # The sequences that pad a captured batch write to one more slot.
        self.kv_cache = KVCache(
            decoder.config, num_slots + cuda_graphs, dtype=weight.dtype, device=weight.device, tp_size=decoder.tp_size
        )
        self._cuda_graphs = CUDAGraphRunner(decoder, self.kv_cache, last_token_ids) if cuda_graphs else None
        self._is_varlen = cuda_graphs or has_flash_kernel(weight.device, weight.dtype, decoder.config.head_dim)

    def warm_up(self, max_num_seqs: int) -> None:
        """Capture the decode steps of all batch sizes, so that no request waits for it."""
        if self._cuda_graphs is not None:
            self._cuda_graphs.capture(max_num_seqs)

    def execute(self, plan: ScheduledTokens) -> Tensor:
        """Compute tokens of some sequences; returns [N, M], the head's input after each of them.

        On a GPU the plan is put in the order of the sequences' slots.
        """
        if self._is_varlen:
            plan.sort(key=lambda entry: entry[0].start_slot)
        if self._cuda_graphs is not None and all(count == 1 and not sequence.order for sequence, count in plan):
            return self._cuda_graphs.execute([sequence for sequence, _ in plan])
        if self._adapters is not None:
            self._adapters.select([(sequence.adapter, count) for sequence, count in plan])
        chunks = [_chunk(sequence, count) for sequence, count in plan]
        new: list[int] = []
        for sequence, count in plan:
            start = sequence.num_computed_tokens
            new += sequence.token_ids[start : start + count]
        token_ids = to_device_async(torch.tensor([new]), self.device)
        if min(new) < 0:
            token_ids = resolve_placeholders(token_ids, self.last_token_ids)
        backend = VarlenCacheAttention if self._is_varlen else CachedAttention
        metadata = backend.build_metadata(self.kv_cache, chunks, self.device)
        hidden = self.decoder.hidden_states(token_ids, metadata)
        for sequence, count in plan:
            sequence.num_computed_tokens += count
        return hidden[0]


def _chunk(sequence: SequenceState, count: int) -> SequenceChunk:
    start = sequence.num_computed_tokens
    position_ids = sequence.position_ids(start, count) if sequence.order else None
    return SequenceChunk(sequence.start_slot, start, count, position_ids)


def to_column_major(decoder: nn.Module) -> None:
    """Store frozen float32 matrices of a CPU column by column; their values stay.

    MKL's product of a few rows with a row-major matrix reads all of it again for every three rows,
    up to 15. Column-major it does not: 13 rows take half the time or less, one row the same, two
    and three a seventh more (dev/log.md).
    """
    for layer in decoder.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
            weight = layer.weight.data
            if type(weight) is Tensor and not weight.is_cuda and weight.dtype == torch.float32:
                layer.weight.data = weight.t().contiguous().t()
