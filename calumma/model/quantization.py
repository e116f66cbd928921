"""Weights in eight bits: a quarter of the memory, and of what a step of one row has to read."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.model.decoder import Decoder

WHOLE = torch.backends.mkldnn.is_available()
"""Whether this torch has a quick product of whole numbers for CPUs."""

_LEAST = torch.finfo(torch.float32).tiny


class Int8Linear(nn.Module):
    """A linear layer without bias whose weights are whole numbers, at most 127.

    Each output has a scale of its own: the largest of its weights is 127 of it. A CPU rounds what
    goes in likewise, each row with a scale of its own, and multiplies whole numbers: exactly, so
    that a row's result does not depend on its company. Elsewhere the weights are widened before
    each product. What comes out has the type of what goes in.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _rounded(linear.weight.detach(), most_whole())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        if not WHOLE or x.device.type != "cpu":
            return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        rows, scale = _rounded(x.flatten(0, -2), 127)
        made = torch._int_mm(rows, self.weight.t())
        return (made * (scale * self.scale)).to(x.dtype).unflatten(0, x.shape[:-1])


def most_whole() -> int:
    """The greatest whole number of a weight.

    A CPU that cannot add products of bytes in 32 bits adds pairs of them in 16, where two products
    of larger ones would not fit.
    """
    return 127 if torch.cpu._is_vnni_supported() else 63


def _rounded(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """[R, C] to whole numbers up to `most`, int8, and what one is worth in each, [R, 1] float32."""
    rows = rows.float()
    scale = (rows.abs().amax(dim=1, keepdim=True) / most).clamp(min=_LEAST)
    return (rows / scale).round().to(torch.int8).contiguous(), scale


def to_int8(decoder: Decoder) -> None:
    """Turn the matrices of a decoder's blocks into `Int8Linear`, for good: it learns no more.

    Embedding, norms and head stay as they are.
    """
    for module in list(decoder.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
