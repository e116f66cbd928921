"""What a step of the image tokenizer computes and keeps, counted on PyTorch's meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel

_FLOAT = 4
"""Bytes of a float32 number."""


@dataclass(frozen=True)
class ImageTokenizerCost:
    """Of encoder, codebook and decoder; the losses' networks are not counted."""

    num_parameters: int
    step_flops: float
    """Operations of one step, forward and backward, of the pictures of one process."""

    activation_bytes: int
    """What autograd keeps for the backward pass, at most: without numbers, some operations seem to
    keep copies where in truth they share."""

    @property
    def state_bytes(self) -> int:
        """Of weights, gradients and Adam's two means, float32."""
        return 4 * _FLOAT * self.num_parameters


def image_tokenizer_cost(config: VQConfig, batch_size: int) -> ImageTokenizerCost:
    """Count a step of so many pictures; nothing is allocated or computed."""
    with torch.device("meta"):
        network = VQModel(config)
        pixels = torch.empty(batch_size, 3, config.resolution, config.resolution)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda x: x):
        network.decode_latents(network.encode_latents(pixels))
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    return ImageTokenizerCost(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        # Backward, each product gives two: one for the weights, one for what came in.
        step_flops=3.0 * counter.get_total_flops(),
        activation_bytes=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
    )
