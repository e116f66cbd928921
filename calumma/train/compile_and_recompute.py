"""How a decoder's step is computed on its device: precision, compiling, recomputing.

The decoder knows nothing of it; its parameters and their names stay as they are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from calumma.model.attention_backends import PackedDocumentAttention
from calumma.model.decoder import Decoder
from calumma.train.config import ComputeConfig

_aten = torch.ops.aten
_DEAR = {
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}
"""What "selective" keeps: the rest of a block is cheap to compute again."""


def compute_dtype(config: ComputeConfig, device: torch.device) -> torch.dtype:
    """The dtype of matrix products, and with "float8" that of what surrounds them."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if config.precision == "float32" else torch.bfloat16


def apply_recompute_and_compile(decoder: Decoder, config: ComputeConfig) -> None:
    """Make the blocks recompute and compile as the config says; to be called once."""
    backend = config.compile
    if backend == "auto":
        backend = "inductor" if decoder.embedding.weight.is_cuda else "none"
    for block in decoder.blocks:
        if config.activation_checkpointing != "none":
            context = (
                _selective if config.activation_checkpointing == "selective" else noop_context_fn
            )
            kept = partial(checkpoint, block.forward, use_reentrant=False, context_fn=context)
            # On the instance, not around it: a wrapping module would rename the parameters.
            block.forward = kept
        if backend != "none":
            block.compile(backend=backend)
    if backend != "none" and not hasattr(PackedDocumentAttention.__call__, "_torchdynamo_disable"):
        # Stacks have other shapes in every batch: compiled, they would be so each time. Said here
        # and not there, because the compiler takes seconds to import.
        PackedDocumentAttention.__call__ = torch.compiler.disable(PackedDocumentAttention.__call__)  # type: ignore[method-assign]


def _selective() -> tuple[Any, Any]:
    """What decides in the forward pass and in the recomputation."""

    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        dear = operation in _DEAR
        return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
