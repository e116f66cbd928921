"""Tests of time estimates against sums by hand."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from calumma.gpu_specs import GPU_SPECS
from calumma.model.decoder import flops_per_token
from calumma.model.presets import preset
from calumma.plan.memory_estimate import ParameterCounts, Workload
from calumma.plan.time_estimate import ASSUMED_MFU, GpuLayout, estimate_time, image_tokenizer_cost
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from tests.plan.live_bytes import LiveBytes

SHAPE = preset("tiny", vocabulary_size=1000)
GPU = replace(
    GPU_SPECS["a100-80gb"],
    peak_flops=1e9,
    memory_bandwidth=1e8,
    nvlink_bandwidth=1e6,
    network_bandwidth=1e5,
    max_watts=500,
    price_per_hour=2.0,
    gpus_per_node=4,
)
UPDATING = 0.28
"""Seconds for a million numbers, 28 bytes each."""

HELD = ParameterCounts(sharded=1_000_000, gathered_block=1_000_000, gathered_embedding=1_000_000)

CONFIG = VQConfig(
    resolution=16,
    base_channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    latent_channels=16,
    code_dim=4,
    num_codes=16,
)


def load(**changes: object) -> Workload:
    return replace(Workload(config=SHAPE, num_sequences=2, seq_len=100), **changes)  # type: ignore[arg-type]


def layout(shards: int, tensor: int = 1, replicas: int = 1) -> GpuLayout:
    return GpuLayout(gpu=GPU, data_parallel_shard=shards, tensor_parallel=tensor, data_parallel_replicate=replicas)


def test_flops_per_token_by_hand() -> None:
    a_block = 4 * 64 * 64 + 4 * 16 + 3 * 64 * 256 + 2 * 64
    weights = 2 * a_block + 64 + 1000 * 64
    assert flops_per_token(SHAPE, 100) == 6 * weights + 12 * 2 * 64 * 100


def test_one_gpu_by_hand() -> None:
    estimate = estimate_time(load(single_process=True), HELD, layout(1), steps=3600, global_batch_size=2, mfu=0.5)
    seconds = 200 * flops_per_token(SHAPE, 100) / 0.5e9 + UPDATING
    assert estimate.optimizer_seconds == pytest.approx(UPDATING)
    assert estimate.step_seconds == pytest.approx(seconds)
    assert estimate.tokens_per_second == pytest.approx(200 / seconds)
    assert estimate.gpu_hours == pytest.approx(seconds)
    assert estimate.kwh == pytest.approx(seconds / 2)
    assert estimate.dollars == pytest.approx(2 * seconds)
    assert (estimate.tokens_per_step, estimate.total_tokens) == (200, 720_000)


def test_weights_are_gathered_twice_and_gradients_reduced_in_float32() -> None:
    estimate = estimate_time(load(), HELD, layout(4), steps=1, global_batch_size=8, mfu=0.5)
    # Two blocks, embedding and head of a million, 2 + 2 + 4 bytes each, three quarters remote.
    assert estimate.comm_seconds.weights == pytest.approx(4e6 * 8 * 0.75 / 1e6)
    assert estimate.is_comm_bound
    assert estimate.step_seconds == pytest.approx(estimate.comm_seconds.weights + UPDATING)


def test_ring_across_nodes_uses_all_network_cards() -> None:
    estimate = estimate_time(load(), HELD, layout(8), steps=1, global_batch_size=16, mfu=0.5)
    assert estimate.comm_seconds.weights == pytest.approx(4e6 * 8 * 7 / 8 / 4e5)


def test_replicas_reduce_gradients_as_well() -> None:
    one, two = (
        estimate_time(load(), HELD, layout(4, replicas=n), steps=1, global_batch_size=8, mfu=0.5) for n in (1, 2)
    )
    # At a stride of four ranks, a ring has one network card per node.
    assert two.comm_seconds.weights - one.comm_seconds.weights == pytest.approx(2 * 4 * 1e6 * 0.5 / 1e5)


def test_recomputation_repeats_tensor_parallel_communication() -> None:
    def waited(**changes: object) -> float:
        estimate = estimate_time(
            load(tensor_parallel=2, **changes), HELD, layout(2, 2), steps=1, global_batch_size=4, mfu=0.5
        )
        return estimate.comm_seconds.activations

    assert waited() == pytest.approx(8 * 2 * 200 * 64 * 2 * 0.5 / 1e6)
    assert waited(activation_checkpointing="full") == pytest.approx(1.5 * waited())
    assert waited(grad_accum_steps=3) == pytest.approx(3 * waited())


def test_full_checkpointing_lowers_the_assumed_mfu() -> None:
    assert ASSUMED_MFU["full"] == pytest.approx(0.75 * ASSUMED_MFU["none"])


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
