"""Weight quantization: int8 and int4 anywhere, float8 on GPUs that multiply it.

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
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder

Quantization = Literal["int8", "int4", "fp8"]

HAS_INT8_MATMUL = torch.backends.mkldnn.is_available()
"""Whether this torch has a fast int8 matrix product for CPUs."""

_MIN_SCALE = torch.finfo(torch.float32).tiny

_INT4_GROUP_SIZES = (64, 32)
"""Weights of a row that may share a scale, the preferred number first."""

_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Scales that `pack_int4` tries, as shares of the one that represents the largest weight."""

_MIN_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that multiply float8: Ada, and with 9.0 Hopper."""

_FP8_ALIGNMENT = 16
"""Sides of float8 matrices must be multiples of this."""


def quantize(decoder: Decoder, quantization: Quantization | None) -> None:
    """Quantize the matrices of a decoder's blocks in place; it cannot be trained afterwards.

    "int8" makes them `Int8Linear`, "int4" `Int4Linear`; "fp8" float8 (e4m3) with one scale per output channel, times
    activations that torchao quantizes per row.

    Raises:
        GenerationError: the quantization is unknown; device, dtype or shape do not allow it; the
            matrices are quantized already; or torchao is not installed.
    """
    if quantization is not None and quantization not in get_args(Quantization):
        raise GenerationError(f"quantization={quantization!r} is not known; expected None, int8, int4 or fp8.")
    if is_int4(decoder) and quantization not in (None, "int4"):
        raise GenerationError(
            f"quantization={quantization!r} of a folder with int4 weights; expected int4 or None. Leave it out, or "
            "load the folder of the float weights."
        )
    if quantization == "int4":
        quantize_int4(decoder)
    for module in decoder.modules():
        if isinstance(module, Int4Linear) and module.packed.device.type == "cpu":
            module.pack_for_cpu()
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
        weight, scale = pack_int8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        if not HAS_INT8_MATMUL or x.device.type != "cpu":
            return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        rows, scale = _quantize_rowwise(x.flatten(0, -2), 127)
        product = torch._int_mm(rows, self.weight.t())
        return (product * (scale * self.scale)).to(x.dtype).unflatten(0, x.shape[:-1])

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix, [outputs, inputs]."""
        return self.weight.to(dtype) * self.scale.to(dtype).unsqueeze(-1)


class Int4Linear(nn.Module):
    """A linear layer without bias whose weights are 4-bit integers, with one scale for each group.

    A CPU multiplies bfloat16 input by packed weights in one kernel, whatever the dtype of the
    input; a row's result does not depend on the rest of the batch. Other devices widen the weights
    before each product. The output has the dtype of the input.
    """

    packed: Tensor
    """[outputs, inputs / 2] uint8: two weights a byte, the even column in the low bits, each plus 8;
    or in the layout of the CPU's kernel."""

    scale: Tensor
    """[outputs, inputs / group size] bfloat16; or for the kernel [groups, outputs, 2], with
    the zero points."""

    def __init__(self, packed: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.in_features, self.out_features = 2 * packed.shape[1], packed.shape[0]
        self.group_size = self.in_features // scale.shape[1]
        self._is_for_cpu = False

    @property
    def num_weights(self) -> int:
        """Number of weights of the matrix."""
        return self.in_features * self.out_features

    def pack_for_cpu(self) -> None:
        """Change to the layout of the CPU's kernel, which cannot be changed back."""
        if not self._is_for_cpu:
            values = torch.stack([self.packed & 15, self.packed >> 4], dim=-1).flatten(1)
            self.packed = torch._convert_weight_to_int4pack_for_cpu(values.int(), 1)
            scale = self.scale.t().bfloat16()
            self.scale = torch.stack([scale, torch.zeros_like(scale)], dim=-1)
            self._is_for_cpu = True

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        if not self._is_for_cpu:
            return F.linear(x, self.dequantized(x.dtype))
        rows = x.flatten(0, -2).bfloat16().contiguous()
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group_size, self.scale)
        return product.to(x.dtype).unflatten(0, x.shape[:-1])

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix, [outputs, inputs]; not in the layout of the CPU's kernel."""
        return unpack_int4(self.packed, self.scale, dtype)


def pack_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantize a matrix to 4 bits, in groups of columns.

    Each group gets, of a few scales, the one with the smallest sum of squared errors.

    Args:
        weight: [O, I] float, I a multiple of the group size.
        group_size: columns that share a scale.

    Returns:
        [O, I / 2] uint8 and [O, I / group_size] bfloat16, as in `Int4Linear`.
    """
    groups = weight.float().unflatten(1, (-1, group_size))
    largest = groups.abs().amax(dim=-1, keepdim=True).clamp(min=_MIN_SCALE)
    best = torch.full_like(largest, torch.inf)
    scale = largest / 7
    for shrink in _SHRINKS:
        candidate = (largest * (shrink / 7)).bfloat16().float()
        error = (_round_to_int4(groups, candidate) * candidate - groups).square().sum(dim=-1, keepdim=True)
        scale = torch.where(error < best, candidate, scale)
        best = torch.minimum(error, best)
    values = (_round_to_int4(groups, scale) + 8).to(torch.uint8).flatten(1)
    return values[:, ::2] | values[:, 1::2] << 4, scale[..., 0].bfloat16()


def _round_to_int4(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / scale).round().clamp(-8, 7)


def unpack_int4(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute the matrix [O, I] of `pack_int4`."""
    values = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).to(dtype) - 8
    groups = values.unflatten(1, (scale.shape[1], -1))
    return (groups * scale.to(dtype).unsqueeze(-1)).flatten(1)


def is_int4(decoder: nn.Module) -> bool:
    """Return whether a decoder has int4 matrices."""
    return any(isinstance(module, Int4Linear) for module in decoder.modules())


def int4_group_size(config: DecoderConfig) -> int:
    """Return the number of weights of a row that share a scale: 64, or 32 where 64 does not divide.

    Raises:
        GenerationError: neither divides the sides of the matrices.
    """
    sides = (config.model_dim, config.feed_forward_dim)
    for size in _INT4_GROUP_SIZES:
        if not any(side % size for side in sides) and not config.num_kv_heads * config.head_dim % 16:
            return size
    raise GenerationError(
        f"quantization='int4' of a decoder with model_dim={sides[0]} and feed_forward_dim={sides[1]}; expected "
        f"multiples of {_INT4_GROUP_SIZES[-1]}. Use int8."
    )


def quantize_int4(decoder: Decoder) -> None:
    """Replace the linear layers of a decoder's blocks by `Int4Linear`."""
    group_size = int4_group_size(decoder.config)
    for module in list(decoder.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int4Linear(*pack_int4(child.weight.detach(), group_size)))


def max_int8_weight() -> int:
    """Return the largest magnitude of an int8 weight.

    A CPU without VNNI adds pairs of byte products in 16 bits, which larger weights overflow.
    """
    return 127 if torch.cpu._is_vnni_supported() else 63


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a matrix [O, I] to int8, and return it with the scale of each row, [O] float32."""
    packed, scale = _quantize_rowwise(weight, max_int8_weight())
    return packed, scale[:, 0]


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
