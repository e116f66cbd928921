"""The memory that is planned is what steps take, on a CPU and for small decoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from calumma.batches.batch import Batch
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.plan.memory_estimate import Workload, peak_memory, saved_activation_bytes
from calumma.plan.sharding_trace import count_rank_parameters, fake_process_group
from calumma.train.compile_and_recompute import prepare
from calumma.train.config import ComputeConfig, OptimizerConfig, ParallelConfig
from calumma.train.optimizer import make_optimizers
from calumma.train.parallelize import Ranks, placed
from calumma.train.train_step import StepRules, optimizer_step
from calumma.vocabulary import Vocabulary
from tests.train.live_bytes import LiveBytes

VOCABULARY = Vocabulary(num_codes=16, num_text=176)
ROWS, LENGTH = 2, 192
WAYS = ("none", "selective", "full")


def shape_of(order: str, dropout: float = 0.0, qk_norm: str = "layer") -> DecoderConfig:
    return preset(
        "tiny",
        vocabulary_size=VOCABULARY.size,
        num_kv_heads=2,
        feed_forward_dim=192,
        norm_order=order,
        dropout=dropout,
        qk_norm=qk_norm,
    )


def load_of(
    shape: DecoderConfig, way: str, dtype: torch.dtype, tensor: int, ranks: int
) -> Workload:
    return Workload(
        config=shape,
        num_sequences=ROWS,
        seq_len=LENGTH,
        activation_checkpointing=way,  # type: ignore[arg-type]
        compute_bytes=dtype.itemsize,
        tensor_parallel=tensor,
        single_process=ranks == 1,
        device_type="cpu",
    )


def batch() -> Batch:
    ids = np.random.default_rng(0).integers(4, VOCABULARY.size, (ROWS, LENGTH + 1))
    counted = np.ones((ROWS, LENGTH), dtype=np.bool_)
    owners = np.zeros((ROWS, LENGTH), dtype=np.int64)
    positions = np.tile(np.arange(LENGTH), (ROWS, 1))
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), counted, owners, positions)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def measured(shape: DecoderConfig, way: str, dtype: torch.dtype, tensor: int, ranks: int) -> int:
    """Most bytes that the first rank holds in its second step, the others being made up."""
    parallel = ParallelConfig(tensor_parallel=tensor)
    with fake_process_group(ranks) as world:
        asked = Ranks(world, torch.device("cpu"), parallel, dtype)
        decoder, place = placed(shape, lambda made: made.initial_weights(0), asked)
        decoder.train()
        prepare(decoder, ComputeConfig(activation_checkpointing=way))  # type: ignore[arg-type]
        optimizers = make_optimizers(decoder, OptimizerConfig())
        rules = StepRules(
            vocabulary=VOCABULARY, z_loss_weight=1e-5, max_grad_norm=1.0, compute_dtype=dtype
        )
        optimizer_step(decoder, optimizers, [batch()], rules, place)
        means = [v for o in optimizers for entry in o.state.values() for v in entry.values()]
        shown = [local(tensor).detach() for tensor in (*decoder.parameters(), *means)]
        with LiveBytes(shown) as live:
            optimizer_step(decoder, optimizers, [batch()], rules, place)
    return live.most


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("order", "dropout", "qk_norm"),
    [("pre", 0.1, "layer"), ("reordered", 0.0, "layer"), ("pre", 0.1, "none")],
)
def test_what_blocks_keep_is_as_planned(order: str, dropout: float, qk_norm: str, way: str) -> None:
    shape = shape_of(order, dropout, qk_norm)
    decoder = Decoder(shape)
    decoder.init_weights(0)
    decoder.train()
    prepare(decoder, ComputeConfig(activation_checkpointing=way))  # type: ignore[arg-type]
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    positions = torch.arange(LENGTH).expand(ROWS, -1).clone()
    shown = [positions, *(parameter.detach() for parameter in decoder.parameters())]
    with LiveBytes(shown) as live:
        before = sum(live.sizes())
        stream = decoder(ids, position_ids=positions, head_fn=lambda hidden: hidden)
        kept = sum(live.sizes()) - before
    # What leaves the last block is the final norm's, and the loss's, to keep.
    planned = saved_activation_bytes(load_of(shape, way, torch.float32, 1, 1))
    assert planned == pytest.approx(kept - stream.untyped_storage().nbytes(), rel=0.1)


@pytest.mark.parametrize(("tensor", "ranks"), [(1, 1), (1, 8), (2, 8)])
@pytest.mark.parametrize("way", WAYS)
def test_the_fullest_moment_is_as_planned(way: str, tensor: int, ranks: int) -> None:
    shape, dtype = shape_of("pre", 0.1), torch.bfloat16
    held = count_rank_parameters(shape, ParallelConfig(tensor_parallel=tensor), ranks)
    planned = peak_memory(load_of(shape, way, dtype, tensor, ranks), held).total
    assert planned == pytest.approx(measured(shape, way, dtype, tensor, ranks), rel=0.1)


@pytest.mark.parametrize("qk_norm", ["layer", "none"])
def test_the_fullest_moment_of_reordered_norms_is_as_planned(qk_norm: str) -> None:
    shape, dtype = shape_of("reordered", qk_norm=qk_norm), torch.bfloat16
    held = count_rank_parameters(shape, ParallelConfig(tensor_parallel=2), 8)
    planned = peak_memory(load_of(shape, "selective", dtype, 2, 8), held).total
    assert planned == pytest.approx(measured(shape, "selective", dtype, 2, 8), rel=0.1)


def test_a_gpu_keeps_less_of_norms_and_more_in_flight() -> None:
    shape = preset("7B")
    here = load_of(shape, "none", torch.bfloat16, 1, 8)
    there = Workload(**{**vars(here), "kind": "cuda"})
    assert saved_activation_bytes(there) < saved_activation_bytes(here)
    held = count_rank_parameters(shape_of("pre"), ParallelConfig(), 8)
    assert peak_memory(there, held).gathered >= peak_memory(here, held).gathered


def test_accumulating_holds_the_gradients_beside_the_activations() -> None:
    shape = shape_of("pre")
    load = load_of(shape, "none", torch.float32, 1, 1)
    held = count_rank_parameters(shape, ParallelConfig(), 1)
    twice = Workload(**{**vars(load), "accumulate": 2})
    assert peak_memory(twice, held).total - peak_memory(load, held).total == 4 * held.sharded
