"""Weights in eight bits: a quarter of the memory, and of what a step of one row has to read."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.model.decoder import Decoder


class Int8Linear(nn.Module):
    """A linear layer without bias whose weights are whole numbers from -127 to 127.

    Each output has a scale of its own: the largest of its weights is 127 of it. What goes in is
    rounded to bfloat16 on a CPU, whose product that is; what comes out has the type of what goes
    in.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer(
            "weight", (weight / scale[:, None]).round().to(torch.int8).contiguous()
        )
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        if x.is_cuda:
            return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        rows = x.flatten(0, -2).bfloat16()
        made = torch._weight_int8pack_mm(rows, self.weight, self.scale.bfloat16())
        return made.to(x.dtype).unflatten(0, x.shape[:-1])


def to_int8(decoder: Decoder) -> None:
    """Turn the matrices of a decoder's blocks into `Int8Linear`, for good: it learns no more.

    Embedding, norms and head stay as they are.
    """
    for module in list(decoder.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
