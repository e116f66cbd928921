"""Estimate of the peak memory of one rank of a pre-training step, without running it.

The counts follow the code: model/decoder.py for what autograd saves of a block, train/loss.py for
the loss, train/parallelize.py for what FSDP2 gathers. tests/plan/test_memory_estimate.py compares
them with the live tensors of real steps.
"""

from dataclasses import dataclass
from typing import Literal

from calumma.model.config import DecoderConfig
from calumma.train.loss import MAX_CHUNK_LOGITS

FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Numbers of decoder parameters that a rank stores and gathers; see `count_rank_parameters`."""

    sharded: int
    """Parameters in the rank's shards of all weights."""

    gathered_block: int
    """Parameters of one block after the FSDP2 all-gather: its tensor-parallel part."""

    gathered_embedding: int
    """Parameters of the gathered embedding, as many as of the head."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one rank computes in a forward and backward pass."""

    config: DecoderConfig

    num_sequences: int
    """Sequences of the rank's micro-batch."""

    seq_len: int
    """Tokens per sequence."""

    activation_checkpointing: Literal["none", "selective", "full"] = "none"

    compute_bytes: int = 2
    """Bytes per element of matrix products: 2 for bfloat16."""

    tensor_parallel: int = 1
    """Ranks that share each sequence and the matrix products of a block."""

    context_parallel: int = 1
    """Ranks that share each sequence only."""

    single_process: bool = False
    """Whether one process computes under autocast and gathers nothing."""

    grad_accum_steps: int = 1

    device_type: Literal["cuda", "cpu"] = "cuda"
    """On a CPU, norms save more, and the loss is computed otherwise."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the micro-batch; sequence parallelism splits them over the tensor ranks."""
        return self.num_sequences * self.seq_len // self.context_parallel

    @property
    def residual_bytes(self) -> int:
        """Bytes per element of the residual stream, which autocast leaves in float32."""
        return FLOAT32_BYTES if self.single_process else self.compute_bytes

    @property
    def autocasts_on_cpu(self) -> bool:
        """Whether a CPU computes in less than float32."""
        return self.device_type == "cpu" and self.compute_bytes < FLOAT32_BYTES


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that one rank holds at the peak of a step."""

    moment: str
    weights: int
    gradients: int
    optimizer: int

    gathered: int
    """Gathered weights, and gradients before their reduction."""

    activations: int
    loss: int

    @property
    def total(self) -> int:
        """Sum of all tensors, without allocator and driver."""
        parts = (self.weights, self.gradients, self.optimizer)
        return sum(parts) + self.gathered + self.activations + self.loss


def peak_memory(workload: Workload, counts: ParameterCounts) -> MemoryEstimate:
    """Return the memory of the moment of a step at which a rank holds most."""
    return max(_step_moments(workload, counts), key=lambda memory: memory.total)


def saved_activation_bytes(workload: Workload) -> int:
    """Return the bytes that all blocks save for the backward pass."""
    rotary = 0 if workload.compute_bytes < FLOAT32_BYTES else workload.config.head_dim * FLOAT32_BYTES
    blocks = round(workload.config.num_layers * _saved_per_token(workload))
    return workload.num_tokens * (blocks + rotary)


def _saved_per_token(workload: Workload) -> float:
    """Return the bytes per token that one block saves with the activation checkpointing."""
    if workload.activation_checkpointing == "none":
        return _saved_without_checkpointing(workload)
    if workload.activation_checkpointing == "selective":
        return _saved_selective(workload)
    return _saved_input(workload)


def _saved_input(workload: Workload) -> float:
    """Return the bytes per token of a block's input."""
    return workload.config.model_dim * workload.residual_bytes / workload.tensor_parallel


def _saved_selective(workload: Workload) -> float:
    """Return the bytes per token of a block's input and its results of matmuls and attention."""
    config, ranks = workload.config, workload.tensor_parallel
    key_dim = config.num_kv_heads * config.head_dim
    # Query, attention; key, value; gate, up. Two more results are reduced over tensor ranks.
    sharded = 2 * config.model_dim + 2 * key_dim + 2 * config.feed_forward_dim
    elements = sharded / ranks + 2 * config.model_dim
    softmax = config.num_heads * FLOAT32_BYTES / ranks
    return _saved_input(workload) + elements * workload.compute_bytes + softmax


def _saved_without_checkpointing(workload: Workload) -> float:
    """Return the bytes per token that the backward operations of one block read."""
    config, ranks, size = workload.config, workload.tensor_parallel, workload.compute_bytes
    key_dim = config.num_kv_heads * config.head_dim
    # Query and key before their norms and after rotation, value, attention's result; gate, its
    # silu, up, and the product of both.
    sharded = 3 * config.model_dim + 3 * key_dim + 4 * config.feed_forward_dim
    heads = 3 * config.num_heads + 2 * config.num_kv_heads  # statistics of norms and of softmax
    if config.qk_norm == "none":
        sharded, heads = sharded - config.model_dim - key_dim, config.num_heads
    rotary = 2 * config.head_dim * size if size < FLOAT32_BYTES else 0
    casts = 5 if workload.single_process and workload.autocasts_on_cpu else 2
    inputs = casts * config.model_dim * size  # of q, k, v and of gate, up
    dropout = 2 * config.model_dim * _mask_bytes(workload) / ranks
    norms = 2 * (config.model_dim * _norm_bytes(workload) + FLOAT32_BYTES) / ranks
    return (sharded * size + heads * FLOAT32_BYTES) / ranks + rotary + inputs + dropout + norms


def _norm_bytes(workload: Workload) -> int:
    """Return the bytes saved per input element of a norm: a CPU saves its result too."""
    if workload.device_type == "cpu":
        return 2 * FLOAT32_BYTES
    if workload.config.norm_order == "pre":
        return workload.residual_bytes
    return workload.compute_bytes


def _mask_bytes(workload: Workload) -> int:
    if not workload.config.dropout:
        return 0
    return workload.compute_bytes if workload.device_type == "cpu" else 1


def _recomputed_bytes(workload: Workload) -> int:
    """Return the bytes that one block computes again in the backward pass."""
    saved = 0.0
    if workload.activation_checkpointing != "full":
        saved = _saved_per_token(workload)
    return round(workload.num_tokens * (_saved_without_checkpointing(workload) - saved))


def _block_gradient_bytes(workload: Workload) -> int:
    """Return the bytes of gradients between the operations of one block."""
    config = workload.config
    elements = 2 * config.feed_forward_dim / workload.tensor_parallel + config.model_dim
    return round(workload.num_tokens * elements * workload.compute_bytes)


def _loss_bytes(workload: Workload) -> int:
    """Return the bytes of a chunk of logits, the head's gradient, its inputs and theirs."""
    config, size = workload.config, workload.compute_bytes
    head = config.vocabulary_size * config.model_dim
    num_tokens = workload.num_tokens // workload.tensor_parallel
    chunk = min(num_tokens, max(1, MAX_CHUNK_LOGITS[workload.device_type] // config.vocabulary_size))
    logits_bytes = 2 * size  # logits and their gradient
    if workload.autocasts_on_cpu:
        logits_bytes += FLOAT32_BYTES  # softmax
    elif workload.device_type == "cpu":
        logits_bytes = FLOAT32_BYTES
    product = head * size if size < FLOAT32_BYTES else 0
    inputs = 3 * num_tokens * config.model_dim * size
    return chunk * config.vocabulary_size * logits_bytes + head * FLOAT32_BYTES + product + inputs


def _step_moments(workload: Workload, counts: ParameterCounts) -> list[MemoryEstimate]:
    """Return the memory in the loss and in the backward passes of last block and embedding."""
    size, config = workload.compute_bytes, workload.config
    block, embedding = counts.gathered_block, counts.gathered_embedding
    sharded = counts.sharded * FLOAT32_BYTES
    stream = workload.num_tokens * config.model_dim * workload.residual_bytes
    saved = saved_activation_bytes(workload) + stream
    accumulated = sharded if workload.grad_accum_steps > 1 else 0
    if workload.single_process:
        copies = (counts.sharded - embedding) * size if size < FLOAT32_BYTES else 0
        in_loss = in_last_block = in_embedding = copies
    else:
        in_loss = 2 * embedding * size
        # This block, the previous one in its all-gather, and gradients; a GPU, which overlaps
        # them, also has a copy and the gradients of the next block.
        in_flight = 3 * block * size
        if workload.device_type == "cuda":
            in_flight += block * (size + FLOAT32_BYTES)
        in_last_block = in_flight + embedding * FLOAT32_BYTES
        in_embedding = 2 * block * size + embedding * (2 * size + FLOAT32_BYTES)
    block_bytes = _recomputed_bytes(workload) + _block_gradient_bytes(workload)
    stream //= workload.tensor_parallel

    def moment(name: str, gradients: int, gathered: int, activations: int, loss: int = 0) -> MemoryEstimate:
        return MemoryEstimate(
            moment=name,
            weights=sharded,
            gradients=gradients,
            optimizer=2 * sharded,
            gathered=gathered,
            activations=activations,
            loss=loss,
        )

    return [
        moment("in the loss", accumulated, in_loss, saved, _loss_bytes(workload)),
        moment("in the backward pass of the last block", accumulated, in_last_block, saved + block_bytes),
        moment("in the backward pass of the embedding", sharded, in_embedding, stream),
    ]
