"""Matrix products of the blocks in float8, by torchao.

Scaling is dynamic, per tensor or per row. Weights keep their names and stay float32; embedding, norms,
attention scores, head and loss are computed as with bfloat16.
"""

import importlib.util
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from calumma.errors import ConfigError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.train.config import TrainConfig

MIN_CAPABILITY = {"tensor": (8, 9), "row": (9, 0)}
"""Compute capability of the first GPUs with float8 products, by scaling: 8.9 is Ada, 9.0 Hopper."""

_ALIGNMENT = 16
"""Divisor of the dimensions of float8 matrices."""


def require_float8(config: TrainConfig, shape: DecoderConfig, device: torch.device) -> None:
    """Raise `ConfigError` if device, packages, ranks or the decoder's shape do not allow float8."""
    field = "compute.precision='float8'"
    fix = "Set compute.precision='bfloat16'."
    if device.type != "cuda":
        raise ConfigError(f"{field} on a {device.type}; expected a GPU with float8. {fix}")
    found = torch.cuda.get_device_capability(device)
    scaling = config.compute.float8_scaling
    required = MIN_CAPABILITY[scaling]
    if found < required:
        raise ConfigError(
            f"{field} with a scale for each {scaling} on a GPU of compute capability {found[0]}.{found[1]}; expected "
            f"at least {required[0]}.{required[1]} ({'L4, ' if scaling == 'tensor' else ''}H100, H200, B200). {fix}"
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            f"{field} needs torchao, which is not installed. Install it with "
            "`pip install 'calumma[float8]'`, or set compute.precision='bfloat16'."
        )
    if config.parallel.tensor_parallel > 1:
        raise ConfigError(
            f"{field} with parallel.tensor_parallel={config.parallel.tensor_parallel}; expected 1. "
            f"Set parallel.tensor_parallel=1 (FSDP2 shards over all ranks), or bfloat16."
        )
    sides = (shape.model_dim, shape.num_kv_heads * shape.head_dim, shape.feed_forward_dim)
    if any(side % _ALIGNMENT for side in sides):
        raise ConfigError(
            f"{field} with matrix dimensions {', '.join(map(str, sides))}; expected multiples of {_ALIGNMENT}. {fix}"
        )


def to_float8(decoder: Decoder, scaling: Literal["tensor", "row"] = "tensor", *, emulate: bool = False) -> None:
    """Convert the blocks' matrix products to float8; call it before sharding and compiling.

    Args:
        decoder: its parameters may be on the meta device.
        scaling: whether a scale belongs to a tensor, or to a row of the left and a column of the
            right matrix of a product.
        emulate: round to float8 but multiply in the usual dtype, for tests on a CPU.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    recipe = {"tensor": "tensorwise", "row": "rowwise"}[scaling]
    convert_to_float8_training(
        decoder.blocks,
        # Exact type: a subclass such as a LoRA layer would lose its adapter.
        module_filter_fn=lambda module, name: type(module) is nn.Linear,
        config=replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate),
    )
