"""Compare counts on the meta device with real steps."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from calumma.plan.image_tokenizer_cost import image_tokenizer_cost
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from tests.plan.live_bytes import LiveBytes

CONFIG = VQConfig(
    resolution=16,
    base_channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    latent_channels=16,
    code_dim=4,
    num_codes=16,
)


def test_parameters_and_flops() -> None:
    network, count = VQModel(CONFIG), image_tokenizer_cost(CONFIG, 2)
    assert count.num_parameters == sum(p.numel() for p in network.parameters())
    assert count.state_bytes == 16 * count.num_parameters
    with FlopCounterMode(display=False) as counter:
        network.decode_latents(network.encode_latents(torch.rand(2, 3, 16, 16))).sum().backward()
    # Pixels need no gradient: a step computes a little less than three forward passes.
    assert 0.9 * count.step_flops < counter.get_total_flops() <= count.step_flops
    assert image_tokenizer_cost(CONFIG, 4).step_flops == 2 * count.step_flops


def test_activation_bytes_are_an_upper_bound() -> None:
    network, pixels = VQModel(CONFIG), torch.rand(8, 3, 16, 16)
    with LiveBytes([pixels, *(p.detach() for p in network.parameters())]) as live:
        before = live.live_bytes()
        made = network.decode_latents(network.encode_latents(pixels))
        saved = live.live_bytes() - before - made.untyped_storage().nbytes()
    estimate = image_tokenizer_cost(CONFIG, 8).activation_bytes
    assert saved <= estimate < 1.5 * saved
