"""Precision, compilation and activation checkpointing of an unmodified decoder."""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from calumma.model.attention_backends import PackedDocumentAttention
from calumma.model.decoder import Decoder
from calumma.train.config import ComputeConfig
from calumma.train.parallelize import RankLayout

_aten = torch.ops.aten
_SAVED_OPS = {
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten._scaled_mm.default,  # float8
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}
"""Operations whose results "selective" saves; the rest of a block is cheap to recompute."""


def compute_dtype(config: ComputeConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products; for "float8" that of everything else."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if config.precision == "float32" else torch.bfloat16


def autocast_context(device: torch.device, layout: RankLayout) -> torch.autocast:
    """Return the context of a forward pass in the layout's dtype."""
    # FSDP2 gathers sharded weights in the lower precision and leaves autocast nothing to do.
    dtype = layout.compute_dtype
    lower = dtype != torch.float32 and not layout.is_sharded
    return torch.autocast(device.type, dtype=dtype, enabled=lower)


def apply_recompute_and_compile(decoder: Decoder, config: ComputeConfig) -> None:
    """Apply activation checkpointing and compilation to the blocks; call it once."""
    backend = config.compile
    if backend == "auto":
        backend = "inductor" if decoder.embedding.weight.is_cuda else "none"
    for block in decoder.blocks:
        if config.activation_checkpointing != "none":
            selective = config.activation_checkpointing == "selective"
            context = _selective_contexts if selective else noop_context_fn
            # On the instance: a wrapping module would rename the parameters.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=context)
        if backend != "none":
            block.compile(backend=backend)
    if backend != "none" and not hasattr(PackedDocumentAttention.__call__, "_torchdynamo_disable"):
        # Its shapes differ in every batch and would recompile each time. Not in its own module,
        # since the compiler takes seconds to import.
        PackedDocumentAttention.__call__ = torch.compiler.disable(PackedDocumentAttention.__call__)  # type: ignore[method-assign]


def _selective_contexts() -> tuple[Any, Any]:
    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        saved = operation in _SAVED_OPS
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
