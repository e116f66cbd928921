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

FLOAT = 4
"""Bytes of a float32 number."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """How many numbers of the decoder a rank holds, and how many it gathers; see plan_trace.py."""

    own: int
    """Numbers of its parts of all weights."""

    block: int
    """Of one block, brought together over the shards: a tensor rank's part of it."""

    table: int
    """Of the embedding brought together, or of the head: as many."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one rank is given to do at a time."""

    shape: DecoderConfig

    rows: int
    """Rows of a batch that the rank works on."""

    length: int
    """Ids in a row."""

    recompute: Literal["none", "selective", "full"] = "none"

    number_bytes: int = 2
    """Of a number in a matrix product: 2 for bfloat16."""

    tensor: int = 1
    """Ranks that share each row."""

    alone: bool = False
    """One process, which gathers nothing and computes under autocast."""

    accumulate: int = 1
    kind: Literal["cuda", "cpu"] = "cuda"
    """A CPU's norms keep more, and its loss takes other steps."""

    @property
    def places(self) -> int:
        """Ids in the rank's rows; between products of T tensor ranks each has a T-th of them."""
        return self.rows * self.length

    @property
    def stream_bytes(self) -> int:
        """Of a number in the residual stream: autocast leaves it in float32."""
        return FLOAT if self.alone else self.number_bytes


@dataclass(frozen=True, kw_only=True)
class Memory:
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


def fullest(load: Load, held: Held) -> Memory:
    """The moment of a step at which a rank holds most."""
    return max(_moments(load, held), key=lambda memory: memory.total)


def kept_by_blocks(load: Load) -> int:
    """Bytes that all blocks keep for the backward pass."""
    ways = {"none": _kept_all, "selective": _kept_dear, "full": _kept_input}
    a_place = ways[load.recompute](load)
    shared = 0 if load.number_bytes < FLOAT else load.shape.head_dim * FLOAT  # rotary angles
    return load.places * (round(load.shape.num_layers * a_place) + shared)


def _kept_input(load: Load) -> float:
    """Bytes a place of one block: what enters it."""
    return load.shape.model_dim * load.stream_bytes / load.tensor


def _kept_dear(load: Load) -> float:
    """Bytes a place of one block: what enters it, results of matrix products and of attention."""
    shape, tensor = load.shape, load.tensor
    keys = shape.num_kv_heads * shape.head_dim
    # Query, attention; key, value; gate, up. Two results are summed over tensor ranks: kept whole.
    cut = 2 * shape.model_dim + 2 * keys + 2 * shape.feed_forward_dim
    numbers = cut / tensor + 2 * shape.model_dim
    return _kept_input(load) + numbers * load.number_bytes + shape.num_heads * FLOAT / tensor


def _kept_all(load: Load) -> float:
    """Bytes a place of one block: whatever some backward operation reads."""
    shape, tensor, each = load.shape, load.tensor, load.number_bytes
    keys = shape.num_kv_heads * shape.head_dim
    # Query and key before their norms and behind their rotation, value, attention's result; gate,
    # its silu, up, and the product of both.
    cut = 3 * shape.model_dim + 3 * keys + 4 * shape.feed_forward_dim
    heads = 3 * shape.num_heads + 2 * shape.num_kv_heads  # statistics of norms, of softmax
    if shape.qk_norm == "none":
        cut, heads = cut - shape.model_dim - keys, shape.num_heads
    angles = 2 * shape.head_dim * each if each < FLOAT else 0
    casts = 5 if load.alone and load.kind == "cpu" and each < FLOAT else 2
    inputs = casts * shape.model_dim * each  # of q, k, v and of gate, up
    dropped = 2 * shape.model_dim * _mask_bytes(load) / tensor
    norms = 2 * (shape.model_dim * _norm_bytes(load) + FLOAT) / tensor
    return (cut * each + heads * FLOAT) / tensor + angles + inputs + dropped + norms


def _norm_bytes(load: Load) -> int:
    """Of each number that a norm reads: a GPU keeps it, a CPU keeps it and its result."""
    if load.kind == "cpu":
        return 2 * FLOAT
    return load.stream_bytes if load.shape.norm_order == "pre" else load.number_bytes


def _mask_bytes(load: Load) -> int:
    if not load.shape.dropout:
        return 0
    return load.number_bytes if load.kind == "cpu" else 1


def _again(load: Load) -> int:
    """Bytes that one block computes a second time, in the backward pass."""
    ways = {"none": _kept_all, "selective": _kept_dear, "full": lambda load: 0.0}
    return round(load.places * (_kept_all(load) - ways[load.recompute](load)))


def _pulls(load: Load) -> int:
    """Bytes of gradients between the operations of one block."""
    shape = load.shape
    numbers = 2 * shape.feed_forward_dim / load.tensor + shape.model_dim
    return round(load.places * numbers * load.number_bytes)


def _loss(load: Load) -> int:
    """Bytes of the loss at work: a chunk of logits, the head's gradient, its inputs and theirs."""
    shape, each = load.shape, load.number_bytes
    table = shape.vocabulary_size * shape.model_dim
    places = load.places // load.tensor
    chunk = min(places, max(1, NUMBERS_AT_ONCE[load.kind] // shape.vocabulary_size))
    # Logits and the pull on them; a CPU's softmax is in float32.
    copies = 2 * each + FLOAT if load.kind == "cpu" and each < FLOAT else 2 * each
    if load.kind == "cpu" and each == FLOAT:
        copies = FLOAT
    product = table * each if each < FLOAT else 0
    inputs = 3 * places * shape.model_dim * each
    return chunk * shape.vocabulary_size * copies + table * FLOAT + product + inputs


def _moments(load: Load, held: Held) -> list[Memory]:
    """What is held when the loss works, and when the first and the last block learn."""
    each, reduced = load.number_bytes, FLOAT
    block, table = held.block, held.table
    own = held.own * FLOAT
    kept = kept_by_blocks(load) + load.places * load.shape.model_dim * load.stream_bytes
    before = own if load.accumulate > 1 else 0
    if load.alone:
        copies = (held.own - table) * each if each < FLOAT else 0
        at_loss = at_last = at_first = copies
    else:
        at_loss = 2 * table * each
        # This block gathered, the one before it on its way, and gradients; a GPU, which does
        # several things at once, also has a copy and the gradients of the block behind it.
        in_flight = 3 * block * each
        if load.kind == "cuda":
            in_flight += block * (each + reduced)
        at_last = in_flight + table * reduced
        at_first = 2 * block * each + table * (2 * each + reduced)
    working = _again(load) + _pulls(load)
    stream = load.places * load.shape.model_dim * load.stream_bytes // load.tensor
    return [
        _memory("in the loss", own, before, at_loss, kept, _loss(load)),
        _memory("as the last block learns", own, before, at_last, kept + working, 0),
        _memory("as the embedding learns", own, own, at_first, stream, 0),
    ]


def _memory(
    moment: str, own: int, gradients: int, gathered: int, activations: int, loss: int = 0
) -> Memory:
    return Memory(
        moment=moment,
        weights=own,
        gradients=gradients,
        optimizer=2 * own,
        gathered=gathered,
        activations=activations,
        loss=loss,
    )
