"""What one rank of a pre-training run holds at its fullest, counted without running it.

The counts follow the code: `model/decoder.py` for what autograd keeps of a block, `train/loss.py`
for the loss, `train/parallel.py` for what FSDP2 gathers. tests/plan/test_memory_estimate.py holds them
against the live tensors of real steps. Letters: M model_dim, F feed_forward_dim, V vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calumma.model.config import DecoderConfig
from calumma.train.loss import NUMBERS_AT_ONCE

FLOAT32_BYTES = 4
"""Bytes of a float32 number."""


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """How many numbers of the decoder a rank holds, and how many it gathers; see plan_trace.py."""

    sharded: int
    """Numbers of its parts of all weights."""

    gathered_block: int
    """Of one block, brought together over the shards: a tensor rank's part of it."""

    gathered_embedding: int
    """Of the embedding brought together, or of the head: as many."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one rank is given to do at a time."""

    shape: DecoderConfig

    num_sequences: int
    """Rows of a batch that the rank works on."""

    seq_len: int
    """Ids in a row."""

    activation_checkpointing: Literal["none", "selective", "full"] = "none"

    compute_bytes: int = 2
    """Of a number in a matrix product: 2 for bfloat16."""

    tensor_parallel: int = 1
    """Ranks that share each row."""

    single_process: bool = False
    """One process, which gathers nothing and computes under autocast."""

    grad_accum_steps: int = 1
    device_type: Literal["cuda", "cpu"] = "cuda"
    """A CPU's norms keep more, and its loss takes other steps."""

    @property
    def num_tokens(self) -> int:
        """Ids in the rank's rows; between products of T tensor ranks each has a T-th of them."""
        return self.num_sequences * self.seq_len

    @property
    def residual_bytes(self) -> int:
        """Of a number in the residual stream: autocast leaves it in float32."""
        return FLOAT32_BYTES if self.single_process else self.compute_bytes


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that one rank holds at the fullest moment of a step."""

    moment: str
    weights: int
    gradients: int
    optimizer: int

    gathered: int
    """Weights brought together for use, and gradients on their way to their owners."""

    activations: int
    loss: int

    @property
    def total(self) -> int:
        """All of it, without what the allocator and the driver take."""
        parts = (self.weights, self.gradients, self.optimizer)
        return sum(parts) + self.gathered + self.activations + self.loss


def peak_memory(load: Workload, held: ParameterCounts) -> MemoryEstimate:
    """The moment of a step at which a rank holds most."""
    return max(_step_moments(load, held), key=lambda memory: memory.total)


def saved_activation_bytes(load: Workload) -> int:
    """Bytes that all blocks keep for the backward pass."""
    ways = {
        "none": _saved_without_checkpointing,
        "selective": _saved_selective,
        "full": _saved_full,
    }
    a_place = ways[load.activation_checkpointing](load)
    shared = (
        0 if load.compute_bytes < FLOAT32_BYTES else load.shape.head_dim * FLOAT32_BYTES
    )  # rotary angles
    return load.num_tokens * (round(load.shape.num_layers * a_place) + shared)


def _saved_full(load: Workload) -> float:
    """Bytes a place of one block: what enters it."""
    return load.shape.model_dim * load.residual_bytes / load.tensor_parallel


def _saved_selective(load: Workload) -> float:
    """Bytes a place of one block: what enters it, results of matrix products and of attention."""
    shape, tensor = load.shape, load.tensor_parallel
    keys = shape.num_kv_heads * shape.head_dim
    # Query, attention; key, value; gate, up. Two results are summed over tensor ranks: kept whole.
    cut = 2 * shape.model_dim + 2 * keys + 2 * shape.feed_forward_dim
    numbers = cut / tensor + 2 * shape.model_dim
    return (
        _saved_full(load) + numbers * load.compute_bytes + shape.num_heads * FLOAT32_BYTES / tensor
    )


def _saved_without_checkpointing(load: Workload) -> float:
    """Bytes a place of one block: whatever some backward operation reads."""
    shape, tensor, each = load.shape, load.tensor_parallel, load.compute_bytes
    keys = shape.num_kv_heads * shape.head_dim
    # Query and key before their norms and behind their rotation, value, attention's result; gate,
    # its silu, up, and the product of both.
    cut = 3 * shape.model_dim + 3 * keys + 4 * shape.feed_forward_dim
    heads = 3 * shape.num_heads + 2 * shape.num_kv_heads  # statistics of norms, of softmax
    if shape.qk_norm == "none":
        cut, heads = cut - shape.model_dim - keys, shape.num_heads
    angles = 2 * shape.head_dim * each if each < FLOAT32_BYTES else 0
    casts = 5 if load.single_process and load.device_type == "cpu" and each < FLOAT32_BYTES else 2
    inputs = casts * shape.model_dim * each  # of q, k, v and of gate, up
    dropped = 2 * shape.model_dim * _mask_bytes(load) / tensor
    norms = 2 * (shape.model_dim * _norm_bytes(load) + FLOAT32_BYTES) / tensor
    return (cut * each + heads * FLOAT32_BYTES) / tensor + angles + inputs + dropped + norms


def _norm_bytes(load: Workload) -> int:
    """Of each number that a norm reads: a GPU keeps it, a CPU keeps it and its result."""
    if load.device_type == "cpu":
        return 2 * FLOAT32_BYTES
    return load.residual_bytes if load.shape.norm_order == "pre" else load.compute_bytes


def _mask_bytes(load: Workload) -> int:
    if not load.shape.dropout:
        return 0
    return load.compute_bytes if load.device_type == "cpu" else 1


def _recomputed_bytes(load: Workload) -> int:
    """Bytes that one block computes a second time, in the backward pass."""
    ways = {
        "none": _saved_without_checkpointing,
        "selective": _saved_selective,
        "full": lambda load: 0.0,
    }
    return round(
        load.num_tokens
        * (_saved_without_checkpointing(load) - ways[load.activation_checkpointing](load))
    )


def _block_gradient_bytes(load: Workload) -> int:
    """Bytes of gradients between the operations of one block."""
    shape = load.shape
    numbers = 2 * shape.feed_forward_dim / load.tensor_parallel + shape.model_dim
    return round(load.num_tokens * numbers * load.compute_bytes)


def _loss_bytes(load: Workload) -> int:
    """Bytes of the loss at work: a chunk of logits, the head's gradient, its inputs and theirs."""
    shape, each = load.shape, load.compute_bytes
    table = shape.vocabulary_size * shape.model_dim
    places = load.num_tokens // load.tensor_parallel
    chunk = min(places, max(1, NUMBERS_AT_ONCE[load.device_type] // shape.vocabulary_size))
    # Logits and the pull on them; a CPU's softmax is in float32.
    copies = (
        2 * each + FLOAT32_BYTES if load.device_type == "cpu" and each < FLOAT32_BYTES else 2 * each
    )
    if load.device_type == "cpu" and each == FLOAT32_BYTES:
        copies = FLOAT32_BYTES
    product = table * each if each < FLOAT32_BYTES else 0
    inputs = 3 * places * shape.model_dim * each
    return chunk * shape.vocabulary_size * copies + table * FLOAT32_BYTES + product + inputs


def _step_moments(load: Workload, held: ParameterCounts) -> list[MemoryEstimate]:
    """What is held when the loss works, and when the first and the last block learn."""
    each, reduced = load.compute_bytes, FLOAT32_BYTES
    block, table = held.gathered_block, held.gathered_embedding
    own = held.sharded * FLOAT32_BYTES
    kept = (
        saved_activation_bytes(load) + load.num_tokens * load.shape.model_dim * load.residual_bytes
    )
    before = own if load.grad_accum_steps > 1 else 0
    if load.single_process:
        copies = (held.sharded - table) * each if each < FLOAT32_BYTES else 0
        at_loss = at_last = at_first = copies
    else:
        at_loss = 2 * table * each
        # This block gathered, the one before it on its way, and gradients; a GPU, which does
        # several things at once, also has a copy and the gradients of the block behind it.
        in_flight = 3 * block * each
        if load.device_type == "cuda":
            in_flight += block * (each + reduced)
        at_last = in_flight + table * reduced
        at_first = 2 * block * each + table * (2 * each + reduced)
    working = _recomputed_bytes(load) + _block_gradient_bytes(load)
    stream = load.num_tokens * load.shape.model_dim * load.residual_bytes // load.tensor_parallel
    return [
        _memory("in the loss", own, before, at_loss, kept, _loss_bytes(load)),
        _memory("as the last block learns", own, before, at_last, kept + working, 0),
        _memory("as the embedding learns", own, own, at_first, stream, 0),
    ]


def _memory(
    moment: str, own: int, gradients: int, gathered: int, activations: int, loss: int = 0
) -> MemoryEstimate:
    return MemoryEstimate(
        moment=moment,
        weights=own,
        gradients=gradients,
        optimizer=2 * own,
        gathered=gathered,
        activations=activations,
        loss=loss,
    )
