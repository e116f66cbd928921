"""Matrix products of the blocks in float8, on GPUs whose tensor cores have it; by torchao.

Both factors of a product, and its gradient, are scaled by their largest number and cast as they
come ("dynamic, tensor by tensor"). Weights keep their names and stay float32; embedding, norms,
attention's scores, head and loss are computed as with bfloat16.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from calumma.errors import ConfigError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.train.config import TrainConfig

NEEDED = (8, 9)
"""Compute capability of the first GPUs that multiply float8: Ada, and with 9.0 Hopper."""

_STEP = 16
"""What the sides of matrices have to be multiples of."""


def require_float8(config: TrainConfig, shape: DecoderConfig, device: torch.device) -> None:
    """See that a run that asks for float8 can have it.

    Raises:
        ConfigError: the device, the package, the ranks or the decoder's shape do not allow it.
    """
    asked = "compute.precision='float8'"
    way_out = "Use bfloat16."
    if device.type != "cuda":
        raise ConfigError(
            f"{asked} on a {device.type}; expected a GPU that multiplies it. {way_out}"
        )
    found = torch.cuda.get_device_capability(device)
    if found < NEEDED:
        raise ConfigError(
            f"{asked}, and the GPU here has compute capability {found[0]}.{found[1]}; expected "
            f"{NEEDED[0]}.{NEEDED[1]} or more (L4, H100, H200, B200). {way_out}"
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            f"{asked}, and torchao is not installed; expected it. Install it with "
            f"`pip install 'calumma[float8]'`, or use bfloat16."
        )
    if config.parallel.tensor_parallel > 1:
        raise ConfigError(
            f"{asked} with parallel.tensor_parallel={config.parallel.tensor_parallel}; expected tensor=1, since "
            "DTensor does not cut float8 products here. Shard over all ranks instead. "
            f"{way_out}"
        )
    sides = (shape.model_dim, shape.num_kv_heads * shape.head_dim, shape.feed_forward_dim)
    if any(side % _STEP for side in sides):
        raise ConfigError(
            f"{asked} with matrices of sides {', '.join(map(str, sides))}; expected multiples of "
            f"{_STEP}. {way_out}"
        )


def to_float8(decoder: Decoder, *, emulate: bool = False) -> None:
    """Make the blocks' matrix products float8; to be called before sharding and compiling.

    Args:
        decoder: its parameters may be on the meta device.
        emulate: round as float8 does, and multiply in the usual way: for tests on a CPU.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(
        decoder.blocks,
        # What adds to a matrix (LoRA) is a kind of its own, which would be lost.
        module_filter_fn=lambda module, name: type(module) is nn.Linear,
        config=Float8LinearConfig(emulate=emulate),
    )
