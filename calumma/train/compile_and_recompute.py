"""Precision, compilation and activation checkpointing of an unmodified decoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from calumma.model.attention_backends import PackedDocumentAttention
from calumma.model.bfloat16_products import MIN_TRAINED_MODEL_DIM, has_bfloat16_products
from calumma.model.decoder import Decoder
from calumma.train.config import ComputeConfig
from calumma.train.parallelize import RankLayout

_aten = torch.ops.aten
_SAVED_OPS = {
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten._scaled_mm.default,  # float8
    _aten._flash_attention_forward.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}
"""Operations whose results "selective" saves; the rest of a block is cheap to recompute."""


def compute_dtype(config: ComputeConfig, device: torch.device, model_dim: int = 0) -> torch.dtype:
    """Return the dtype of matrix products; for "float8" that of everything else.

    "auto" on a CPU is bfloat16 for a `model_dim` at which that is quicker, and float32 for several
    processes, whose residual stream FSDP2 would round too.
    """
    if config.precision == "auto":
        is_quicker = has_bfloat16_products(device) and model_dim >= MIN_TRAINED_MODEL_DIM
        in_products = is_quicker and not torch.distributed.is_initialized()
        return torch.bfloat16 if device.type == "cuda" or in_products else torch.float32
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
            # On the instance: a wrapping module would rename the parameters.
            block.forward = _checkpointed(block.forward, config.activation_checkpointing == "selective")
        if backend != "none":
            block.compile(backend=backend)
    if backend != "none" and not hasattr(PackedDocumentAttention.__call__, "_torchdynamo_disable"):
        # Its shapes differ in every batch and would recompile each time. Not in its own module,
        # since the compiler takes seconds to import.
        PackedDocumentAttention.__call__ = torch.compiler.disable(PackedDocumentAttention.__call__)  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Tensor], selective: bool) -> Callable[..., Tensor]:
    """Return a forward function whose activations are recomputed.

    A function of its own and no `functools.partial`: the compiler would skip the block.
    """
    # The compiler knows no `noop_context_fn`, the default.
    contexts: dict[str, Any] = {"context_fn": _selective_contexts} if selective else {}

    def checkpointed_forward(*inputs: Any) -> Tensor:
        output: Tensor = checkpoint(forward, *inputs, use_reentrant=False, **contexts)
        return output

    return checkpointed_forward


def _selective_contexts() -> tuple[Any, Any]:
    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        saved = operation in _SAVED_OPS
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
