"""Steps in which every row reads one id, captured once on a GPU and replayed.

A step of a large model is some thousand small operations, and starting them takes a GPU's host
longer than the GPU needs for them. A CUDA graph starts them all at once; it wants shapes and
addresses that stay. So there is one for each number of rows and width of what they look back at,
both rounded up, and what changes from step to step is one small tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from calumma.generate.request import SequenceState
from calumma.generate.step_output import resolve_placeholders, to_device_async
from calumma.model.attention_backends import GatheredCacheAttention
from calumma.model.decoder import Decoder
from calumma.model.kv_cache import KVCache

CONTEXT_LENGTH_MULTIPLE = 256
"""Widths are multiples of it."""


class CUDAGraphRunner:
    """The step of one id a row. On a CPU the same is computed, and nothing captured."""

    def __init__(self, decoder: Decoder, cache: KVCache, latest: Tensor) -> None:
        """Use a decoder and its cache, whose last slot belongs to nobody: rows that only fill up
        a step write there.

        Args:
            decoder: whose steps are captured.
            cache: of its rows.
            latest: [seats] int64, the id that was drawn last at each seat; it stays where it is.
        """
        self._decoder, self._cache, self._latest = decoder, cache, latest
        self._steps: dict[tuple[int, int], tuple[Tensor, Callable[[], Tensor]]] = {}

    def execute(self, rows: Sequence[SequenceState]) -> Tensor:
        """Read the next id of each row; [R, M], what the head reads behind it.

        On a GPU the result stands where the next step of its size will write: whoever wants it is
        to be launched before that, on the same stream.
        """
        longest = max(row.num_computed_tokens for row in rows) + 1
        key = (
            padded_batch_size(len(rows)),
            -(-longest // CONTEXT_LENGTH_MULTIPLE) * CONTEXT_LENGTH_MULTIPLE,
        )
        state = torch.zeros(3, key[0], dtype=torch.int64)
        state[1] = self._cache.num_slots - 1
        state[:, : len(rows)] = torch.tensor(
            [
                (row.token_ids[row.num_computed_tokens], row.start_slot, row.num_computed_tokens)
                for row in rows
            ]
        ).T
        if key not in self._steps:
            self._steps[key] = self._captured(state, key[1])
        held, step = self._steps[key]
        held.copy_(to_device_async(state, held.device))
        for row in rows:
            row.num_computed_tokens += 1
        return step()[: len(rows)]

    def _captured(self, state: Tensor, width: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """A tensor to put the state of a step into, and what runs the step."""
        held = state.to(self._cache.keys.device)

        def step() -> Tensor:
            ids, first, positions = held
            sight = GatheredCacheAttention.build_metadata(self._cache, first, positions, width)
            known = resolve_placeholders(ids, self._latest).unsqueeze(0)
            return self._decoder.hidden_states(known, sight)[0]

        if not held.is_cuda:
            return held, step
        with torch.cuda.device(held.device):
            return held, self._graph(step)

    @staticmethod
    def _graph(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A step of the current GPU, captured."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()  # the first call sets up what a capture may not
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may encode and decode pictures on the same device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made = step()

        def replay() -> Tensor:
            graph.replay()
            return made

        return replay


def padded_batch_size(count: int) -> int:
    """A number of rows rounded up to two steps an octave.

    >>> [rounded(count) for count in (1, 2, 3, 4, 5, 7, 9, 13, 24, 25)]
    [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    """
    octave = 1 << (count - 1).bit_length()
    return octave * 3 // 4 if count <= octave * 3 // 4 and octave > 2 else octave
