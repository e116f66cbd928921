"""Weight quantization for generation: int8 anywhere, float8 on GPUs that multiply it.

The matrices of the blocks are quantized, which are nearly all of a large decoder. The embedding is
a lookup, not a product; rounding the head would round the logits themselves, and a step reads only
the rows of tokens that may come next: both keep their dtype.
"""

import logging
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.errors import GenerationError
from calumma.model.decoder import Decoder

Quantization = Literal["int8", "fp8"]

HAS_INT8_MATMUL = torch.backends.mkldnn.is_available()
"""Whether this torch has a fast int8 matrix product for CPUs."""

_MIN_SCALE = torch.finfo(torch.float32).tiny

_MIN_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that multiply float8: Ada, and with 9.0 Hopper."""

_FP8_ALIGNMENT = 16
"""Sides of float8 matrices must be multiples of this."""


def quantize(decoder: Decoder, quantization: Quantization | None) -> None:
    """Quantize the matrices of a decoder's blocks in place; it cannot be trained afterwards.

    "int8" makes them `Int8Linear`; "fp8" float8 (e4m3) with one scale per output channel, times
    activations that torchao quantizes per row.

    Raises:
        GenerationError: the quantization is unknown; device, dtype or shape do not allow it; or
            torchao is not installed.
    """
    if quantization is not None and quantization not in get_args(Quantization):
        raise GenerationError(f"quantization={quantization!r} is not known; expected None, int8 or fp8.")
    if quantization == "int8":
        quantize_int8(decoder)
    elif quantization == "fp8":
        require_fp8(decoder)
        _quantize_fp8(decoder)


class Int8Linear(nn.Module):
    """A linear layer without bias whose weights are int8, with one scale per output channel.

    A CPU quantizes the input likewise, with one scale per row, and multiplies integers: exactly,
    so a row's result does not depend on the rest of the batch. Other devices widen the weights
    before each product. The output has the dtype of the input.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _quantize_rowwise(linear.weight.detach(), max_int8_weight())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        if not HAS_INT8_MATMUL or x.device.type != "cpu":
            return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        rows, scale = _quantize_rowwise(x.flatten(0, -2), 127)
        product = torch._int_mm(rows, self.weight.t())
        return (product * (scale * self.scale)).to(x.dtype).unflatten(0, x.shape[:-1])


def max_int8_weight() -> int:
    """Return the largest magnitude of an int8 weight.

    A CPU without VNNI adds pairs of byte products in 16 bits, which larger weights overflow.
    """
    return 127 if torch.cpu._is_vnni_supported() else 63


def _quantize_rowwise(rows: Tensor, max_value: int) -> tuple[Tensor, Tensor]:
    """[R, C] to int8 of at most `max_value`, and the scale of each row, [R, 1] float32."""
    rows = rows.float()
    scale = (rows.abs().amax(dim=1, keepdim=True) / max_value).clamp(min=_MIN_SCALE)
    return (rows / scale).round().to(torch.int8).contiguous(), scale


def quantize_int8(decoder: Decoder) -> None:
    """Replace the linear layers of a decoder's blocks by `Int8Linear`."""
    for module in list(decoder.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))


def require_fp8(decoder: Decoder) -> None:
    """Raise `GenerationError` unless a decoder's matrices can be float8 on its device."""
    weight = decoder.embedding.weight
    if weight.device.type != "cuda":
        raise GenerationError(
            f"quantization='fp8' on a {weight.device.type}; expected a GPU that multiplies float8. Use int8."
        )
    found = torch.cuda.get_device_capability(weight.device)
    if found < _MIN_CAPABILITY:
        raise GenerationError(
            f"quantization='fp8' on a GPU of compute capability {found[0]}.{found[1]}; expected "
            f"{_MIN_CAPABILITY[0]}.{_MIN_CAPABILITY[1]} or more (L4, H100, H200, B200). Use int8."
        )
    if weight.dtype != torch.bfloat16:
        raise GenerationError(
            f"quantization='fp8' with dtype='{str(weight.dtype).removeprefix('torch.')}'; expected "
            "bfloat16, to which products of float8 are rounded. Ask for dtype='bfloat16'."
        )
    config = decoder.config
    sides = (config.model_dim, config.num_kv_heads * config.head_dim, config.feed_forward_dim)
    if any(side % _FP8_ALIGNMENT for side in sides):
        raise GenerationError(
            f"quantization='fp8' of matrices with sides {', '.join(map(str, sides))}; expected "
            f"multiples of {_FP8_ALIGNMENT}. Use int8."
        )


def _quantize_fp8(decoder: Decoder) -> None:
    # torchao warns of kernels that are not for this Python, and of what torch has of its own.
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
    except ImportError as error:
        raise GenerationError(
            "quantization='fp8' needs torchao, which is not installed. Install it with "
            "`pip install 'calumma[float8]'`, or use int8."
        ) from error
    finally:
        logging.disable(level)
    # Per row: with one scale for all, a request's rounding would depend on the rest of the batch.
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    quantize_(decoder.blocks, config, filter_fn=lambda module, _: isinstance(module, nn.Linear))
