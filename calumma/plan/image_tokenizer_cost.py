"""FLOPs and memory of an image tokenizer step, counted on the meta device."""

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
    """Cost of encoder, codebook and decoder; the networks of the losses are not counted."""

    num_parameters: int
    step_flops: float
    """FLOPs of one step, forward and backward, of the images of one process."""

    activation_bytes: int
    """Upper bound of the bytes that autograd saves for the backward pass: on the meta device, some
    operations count copies where real tensors share memory."""

    @property
    def state_bytes(self) -> int:
        """Bytes of weights, gradients and both moments of Adam, float32."""
        return 4 * _FLOAT * self.num_parameters


def image_tokenizer_cost(config: VQConfig, batch_size: int) -> ImageTokenizerCost:
    """Count a step of `batch_size` images, allocating and computing nothing."""
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
        # Backward has two products for each forward one: for weights and for inputs.
        step_flops=3.0 * counter.get_total_flops(),
        activation_bytes=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
    )
