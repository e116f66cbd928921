"""The decoder's blocks, compiled: fewer and larger operations in each step.

One compiled block is all of them, whatever their number, and whatever rows and ids a step has: a
block is compiled for one id and for several, and for each way of attending, and never again.
"""

from __future__ import annotations

import torch

from calumma.model.attention_backends import CachedAttention
from calumma.model.decoder import Decoder


def compile_blocks(decoder: Decoder, *, backend: str = "inductor") -> None:
    """Have a decoder's blocks compiled when they are first called; to be said before that.

    On a GPU with `Budget.captured`, a step is compiled in the call that precedes its capture, and
    the graph holds what the compiler made of it. On a CPU the calls of attention, one a row, stay
    as they are, between what is compiled before and behind them.

    Args:
        decoder: of which nothing else changes; its weights keep their names.
        backend: torch.compile's.
    """
    if not hasattr(CachedAttention.__call__, "_torchdynamo_disable"):
        # It goes through rows one by one, whose lengths are others in every step. Said here and
        # not there, because the compiler takes seconds to import.
        CachedAttention.__call__ = torch.compiler.disable(CachedAttention.__call__)  # type: ignore[method-assign]
    for block in decoder.blocks:
        block.compile(backend=backend, dynamic=True)
