"""Weights of eight bits to generate with: whole numbers anywhere, float8 on GPUs that multiply it.

The matrices of the blocks are rounded, which are nearly all of a large decoder. The embedding is
looked up and not multiplied; the head's rounding would be the logits' own, and of its rows a step
reads but those that may come next: both stay as they are.
"""

from __future__ import annotations

import logging
from typing import Literal, get_args

import torch
from torch import nn

from calumma.errors import GenerationError
from calumma.model.decoder import Decoder
from calumma.model.quantization import to_int8

Weights = Literal["plain", "int8", "fp8"]

_NEEDED = (8, 9)
"""Compute capability of the first GPUs that multiply float8: Ada, and with 9.0 Hopper."""

_STEP = 16
"""What the sides of matrices in float8 have to be multiples of."""


def round_weights(decoder: Decoder, weights: Weights) -> None:
    """Round the matrices of a decoder's blocks, for good: it learns no more.

    Args:
        decoder: where it will be used, in the dtype it will have.
        weights: "plain" leaves them; "int8" makes them whole numbers (`Int8Linear`); "fp8" float8
            of four bits of exponent and three of mantissa, one scale an output, multiplied with
            rows that are rounded likewise as they come, by torchao.

    Raises:
        GenerationError: there are no such weights; device, dtype or shape do not allow them; or
            torchao is not installed.
    """
    if weights not in get_args(Weights):
        raise GenerationError(f"weights={weights!r} are not known; expected plain, int8 or fp8.")
    if weights == "int8":
        to_int8(decoder)
    elif weights == "fp8":
        require_fp8(decoder)
        _to_fp8(decoder)


def require_fp8(decoder: Decoder) -> None:
    """See that a decoder's matrices can be float8 where it is.

    Raises:
        GenerationError: they cannot.
    """
    weight = decoder.embedding.weight
    if weight.device.type != "cuda":
        raise GenerationError(
            f"weights='fp8' on a {weight.device.type}; expected a GPU that multiplies float8. Use "
            "int8."
        )
    found = torch.cuda.get_device_capability(weight.device)
    if found < _NEEDED:
        raise GenerationError(
            f"weights='fp8', and the GPU here has compute capability {found[0]}.{found[1]}; expected "
            f"{_NEEDED[0]}.{_NEEDED[1]} or more (L4, H100, H200, B200). Use int8."
        )
    if weight.dtype != torch.bfloat16:
        raise GenerationError(
            f"weights='fp8' with dtype='{str(weight.dtype).removeprefix('torch.')}'; expected "
            "bfloat16, to which products of float8 are rounded. Ask for dtype='bfloat16'."
        )
    shape = decoder.config
    sides = (shape.model_dim, shape.num_kv_heads * shape.head_dim, shape.feed_forward_dim)
    if any(side % _STEP for side in sides):
        raise GenerationError(
            f"weights='fp8' of matrices of sides {', '.join(map(str, sides))}; expected multiples of "
            f"{_STEP}. Use int8."
        )


def _to_fp8(decoder: Decoder) -> None:
    # torchao warns of kernels that are not for this Python, and of what torch has of its own.
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            PerRow,
            quantize_,
        )
    except ImportError as error:
        raise GenerationError(
            "weights='fp8' need torchao, which is not installed. `pip install 'calumma[float8]'` "
            "brings it; int8 needs nothing."
        ) from error
    finally:
        logging.disable(level)
    # Row by row: with one scale for all, a request's rounding would depend on its company.
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    quantize_(decoder.blocks, config, filter_fn=lambda module, _: isinstance(module, nn.Linear))
