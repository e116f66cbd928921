"""Matrix products in bfloat16 on a CPU, with all else in float32.

CPUs that multiply bfloat16 do so three to four times as fast as float32, and read half the bytes.
Attention over few queries is slower in bfloat16 than in float32 there, and costs more precision, so
only the matrices of the blocks change (dev/log.md has the measurement).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.model.config import DecoderConfig

MIN_MODEL_DIM = 512
"""Width of a decoder from which generation with products in bfloat16 is quicker, casts included."""

MIN_TRAINED_MODEL_DIM = 96
"""The same width for training, whose products have many rows."""


class BFloat16Linear(nn.Linear):
    """A linear layer without bias whose product is in bfloat16; its output has the input's dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(linear.weight.detach().bfloat16(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        return F.linear(x.bfloat16(), self.weight).to(x.dtype)


def use_bfloat16_products(blocks: nn.Module) -> None:
    """Replace the linear layers of a decoder's blocks by `BFloat16Linear`, in place."""
    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, BFloat16Linear(child))


def prefers_bfloat16_products(device: torch.device, config: DecoderConfig) -> bool:
    """Return whether they make generation quicker: on a CPU that has them, with a wide decoder."""
    return has_bfloat16_products(device) and config.model_dim >= MIN_MODEL_DIM


def has_bfloat16_products(device: torch.device) -> bool:
    """Return whether a device is a CPU that multiplies bfloat16, by AVX-512 or AMX."""
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
