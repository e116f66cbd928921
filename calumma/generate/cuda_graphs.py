"""CUDA graphs of decode steps: captured once for each batch size, then replayed.

A step of a large model is about a thousand small kernels, and launching them takes a host longer
than a GPU needs to run them. A CUDA graph launches them all at once, but needs static shapes and
addresses. Attention takes the lengths of sequences from device tensors, so there is one graph for
each padded batch size, and what changes from step to step is one small tensor. Graphs share a
memory pool: the result of one is used before the next is replayed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from calumma.generate.sequence_state import SequenceState
from calumma.generate.step_output import resolve_placeholders
from calumma.model.attention_backends import VarlenCacheAttention
from calumma.model.decoder import Decoder
from calumma.model.kv_cache import KVCache, to_device_async


class CUDAGraphRunner:
    """Runs decode steps of one token per sequence. On a CPU nothing is captured."""

    def __init__(self, decoder: Decoder, kv_cache: KVCache, last_token_ids: Tensor) -> None:
        """Start without graphs; sequences that pad a batch write to the cache's last slot.

        `last_token_ids` are [batch slots] int64, for placeholders; the address must not change.
        """
        self._decoder, self._kv_cache, self._last_token_ids = decoder, kv_cache, last_token_ids
        self._steps: dict[int, tuple[Tensor, Callable[[], Tensor]]] = {}
        """State tensor and step of each padded batch size."""

        self._memory_pool: Any = None

    @torch.inference_mode()
    def capture(self, max_num_seqs: int) -> None:
        """Capture the graphs of all batch sizes up to `max_num_seqs`.

        The largest comes first: the memory that it takes from the pool serves the others.
        """
        for size in sorted({padded_batch_size(count) for count in range(1, max_num_seqs + 1)}, reverse=True):
            self._step_of(size)

    def execute(self, sequences: Sequence[SequenceState]) -> Tensor:
        """Compute the next token of each sequence; returns [R, M], the head's input after it.

        The sequences are in the order of their slots. On a GPU the next step of the same size
        overwrites the result: use it on the same stream before that step.
        """
        static_state, step = self._step_of(padded_batch_size(len(sequences)))
        state = self._padding(static_state.shape[1])
        state[:, : len(sequences)] = torch.tensor(
            [(s.token_ids[s.num_computed_tokens], s.start_slot, s.num_computed_tokens)
             for s in sequences]
        ).T  # fmt: skip
        static_state.copy_(to_device_async(state, static_state.device))
        for sequence in sequences:
            sequence.num_computed_tokens += 1
        return step()[: len(sequences)]

    def _padding(self, size: int) -> Tensor:
        """Return the state of `size` sequences that pad a batch: token ids, first slots, positions."""
        state = torch.zeros(3, size, dtype=torch.int64)
        state[1] = self._kv_cache.num_slots - 1
        return state

    def _step_of(self, size: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return a tensor for the state of a step, and a function that runs the step on it."""
        if size not in self._steps:
            static_state = self._padding(size).to(self._kv_cache.keys.device)
            self._steps[size] = static_state, self._build_step(static_state)
        return self._steps[size]

    def _build_step(self, static_state: Tensor) -> Callable[[], Tensor]:
        def step() -> Tensor:
            token_ids, start_slots, position_ids = static_state
            metadata = VarlenCacheAttention.build_decode_metadata(self._kv_cache, start_slots, position_ids)
            known = resolve_placeholders(token_ids, self._last_token_ids).unsqueeze(0)
            return self._decoder.hidden_states(known, metadata)[0]

        if not static_state.is_cuda:
            return step
        with torch.cuda.device(static_state.device):
            return self._capture(step)

    def _capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Capture a step on the current GPU; returns a function that replays it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()  # the first call sets up what a capture may not
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may encode and decode images on the same device meanwhile.
        if self._memory_pool is None:
            self._memory_pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._memory_pool, capture_error_mode="thread_local"):
            output = step()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def padded_batch_size(count: int) -> int:
    """Round a batch size up to two steps an octave.

    >>> [padded_batch_size(count) for count in (1, 2, 3, 4, 5, 7, 9, 13, 24, 25)]
    [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    """
    octave = 1 << (count - 1).bit_length()
    return octave * 3 // 4 if count <= octave * 3 // 4 and octave > 2 else octave
