"""Compare planned memory with live tensors of real steps of small decoders on a CPU."""

from functools import partial

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
from calumma.plan.run_plan import count_rank_parameters, fake_process_group
from calumma.train.compile_and_recompute import apply_recompute_and_compile
from calumma.train.config import ComputeConfig, OptimizerConfig, ParallelConfig
from calumma.train.decoder_trainer import optimizer_step
from calumma.train.optimizer import make_optimizers
from calumma.train.parallelize import build_sharded_decoder
from calumma.vocabulary import Vocabulary
from tests.plan.live_bytes import LiveBytes

VOCABULARY = Vocabulary(num_codes=16, num_text=176)
NUM_SEQUENCES, SEQ_LEN = 2, 192
MODES = ("none", "selective", "full")


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


def load_of(shape: DecoderConfig, mode: str, dtype: torch.dtype, tensor: int, ranks: int) -> Workload:
    return Workload(
        config=shape,
        num_sequences=NUM_SEQUENCES,
        seq_len=SEQ_LEN,
        activation_checkpointing=mode,  # type: ignore[arg-type]
        compute_bytes=dtype.itemsize,
        tensor_parallel=tensor,
        single_process=ranks == 1,
        device_type="cpu",
    )


def batch() -> Batch:
    ids = np.random.default_rng(0).integers(4, VOCABULARY.size, (NUM_SEQUENCES, SEQ_LEN + 1))
    loss_mask = np.ones((NUM_SEQUENCES, SEQ_LEN), dtype=np.bool_)
    document_ids = np.zeros((NUM_SEQUENCES, SEQ_LEN), dtype=np.int64)
    positions = np.tile(np.arange(SEQ_LEN), (NUM_SEQUENCES, 1))
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy(), loss_mask, document_ids, positions)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def measured(shape: DecoderConfig, mode: str, dtype: torch.dtype, tensor: int, ranks: int) -> int:
    """Return the peak bytes of rank 0 in its second step, with a fake process group."""
    parallel = ParallelConfig(tensor_parallel=tensor)
    with fake_process_group(ranks) as dist:
        decoder, layout = build_sharded_decoder(
            shape,
            lambda made: made.initial_weights(0),
            dist=dist,
            device=torch.device("cpu"),
            parallel=parallel,
            dtype=dtype,
        )
        decoder.train()
        apply_recompute_and_compile(decoder, ComputeConfig(activation_checkpointing=mode))  # type: ignore[arg-type]
        optimizers = make_optimizers(decoder, OptimizerConfig())
        step = partial(
            optimizer_step,
            decoder,
            optimizers,
            [batch()],
            vocabulary=VOCABULARY,
            z_loss_weight=1e-5,
            max_grad_norm=1.0,
            layout=layout,
        )
        step()
        means = [v for o in optimizers for entry in o.state.values() for v in entry.values()]
        shown = [local(tensor).detach() for tensor in (*decoder.parameters(), *means)]
        with LiveBytes(shown) as live:
            step()
    return live.peak


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("order", "dropout", "qk_norm"), [("pre", 0.1, "layer"), ("reordered", 0.0, "layer"), ("pre", 0.1, "none")]
)
def test_saved_activations(order: str, dropout: float, qk_norm: str, mode: str) -> None:
    shape = shape_of(order, dropout, qk_norm)
    decoder = Decoder(shape)
    decoder.init_weights(0)
    decoder.train()
    apply_recompute_and_compile(decoder, ComputeConfig(activation_checkpointing=mode))  # type: ignore[arg-type]
    ids = torch.zeros(NUM_SEQUENCES, SEQ_LEN, dtype=torch.int64)
    positions = torch.arange(SEQ_LEN).expand(NUM_SEQUENCES, -1).clone()
    shown = [positions, *(parameter.detach() for parameter in decoder.parameters())]
    with LiveBytes(shown) as live:
        before = live.live_bytes()
        stream = decoder(ids, position_ids=positions, head_fn=lambda hidden: hidden)
        kept = live.live_bytes() - before
    # The last block's output is saved by the final norm and the loss.
    planned = saved_activation_bytes(load_of(shape, mode, torch.float32, 1, 1))
    assert planned == pytest.approx(kept - stream.untyped_storage().nbytes(), rel=0.1)


@pytest.mark.parametrize(("tensor", "ranks"), [(1, 1), (1, 8), (2, 8)])
@pytest.mark.parametrize("mode", MODES)
def test_peak_memory(mode: str, tensor: int, ranks: int) -> None:
    shape, dtype = shape_of("pre", 0.1), torch.bfloat16
    held = count_rank_parameters(shape, ParallelConfig(tensor_parallel=tensor), ranks)
    planned = peak_memory(load_of(shape, mode, dtype, tensor, ranks), held).total
    assert planned == pytest.approx(measured(shape, mode, dtype, tensor, ranks), rel=0.1)


@pytest.mark.parametrize("qk_norm", ["layer", "none"])
def test_peak_memory_of_reordered_norms(qk_norm: str) -> None:
    shape, dtype = shape_of("reordered", qk_norm=qk_norm), torch.bfloat16
    held = count_rank_parameters(shape, ParallelConfig(tensor_parallel=2), 8)
    planned = peak_memory(load_of(shape, "selective", dtype, 2, 8), held).total
    assert planned == pytest.approx(measured(shape, "selective", dtype, 2, 8), rel=0.1)


def test_gpu_saves_less_of_norms_and_has_more_in_flight() -> None:
    shape = preset("7B")
    here = load_of(shape, "none", torch.bfloat16, 1, 8)
    there = Workload(**{**vars(here), "device_type": "cuda"})
    assert saved_activation_bytes(there) < saved_activation_bytes(here)
    held = count_rank_parameters(shape_of("pre"), ParallelConfig(), 8)
    assert peak_memory(there, held).gathered >= peak_memory(here, held).gathered


def test_gradient_accumulation_adds_the_gradients() -> None:
    shape = shape_of("pre")
    load = load_of(shape, "none", torch.float32, 1, 1)
    held = count_rank_parameters(shape, ParallelConfig(), 1)
    twice = Workload(**{**vars(load), "grad_accum_steps": 2})
    assert peak_memory(twice, held).total - peak_memory(load, held).total == 4 * held.sharded
