"""Adapters of a decoder at inference: several at once, each for its own rows of a batch.

An adapter has low-rank updates of matrices (LoRA, arXiv:2106.09685) and replaced rows of the
vocabulary tables. The weights of the decoder stay as they are, quantized or not.

Shapes: N tokens, I and O input and output width of a matrix, R rank, V vocabulary size, W replaced
rows, M model_dim.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calumma.errors import GenerationError
from calumma.model.decoder import Decoder


class LoRAMatrices(NamedTuple):
    """A low-rank update of a matrix: W + scale * B A."""

    lora_A: Tensor
    """[R, I]."""

    lora_B: Tensor
    """[O, R]."""

    scale: float

    def delta(self) -> Tensor:
        """Compute the update, [O, I] float32."""
        return self.scale * (self.lora_B.float() @ self.lora_A.float())


class TokenRows(NamedTuple):
    """Rows that replace those of a vocabulary table."""

    token_ids: Tensor
    """[W] int64."""

    rows: Tensor
    """[W, M]."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Weights of an adapter."""

    matrices: Mapping[str, LoRAMatrices] = field(default_factory=dict)
    """Updates by the names of modules in `Decoder`."""

    tables: Mapping[str, TokenRows] = field(default_factory=dict)
    """Rows of "embedding" and "head"."""

    def to(self, weight: Tensor) -> "Adapter":
        """Return a copy with the device and dtype of a weight."""
        return Adapter(
            matrices={
                name: LoRAMatrices(m.lora_A.to(weight), m.lora_B.to(weight), m.scale)
                for name, m in self.matrices.items()
            },
            tables={
                name: TokenRows(t.token_ids.to(weight.device), t.rows.to(weight)) for name, t in self.tables.items()
            },
        )


class AdapterBatch:
    """The adapters of a decoder, and which of them each token of a forward call uses."""

    def __init__(self, decoder: Decoder, adapters: Mapping[str, Adapter]) -> None:
        """Attach adapters to a decoder, in place; until `select` no token uses one.

        The adapter named "", if there is one, is used where none is named.
        """
        weight = decoder.embedding.weight
        self.adapters = {name: adapter.to(weight) for name, adapter in adapters.items()}
        self._device = weight.device
        # Engines in several threads may share a decoder.
        self._selected = threading.local()
        modules = {name for adapter in self.adapters.values() for name in adapter.matrices}
        for name in sorted(modules):
            parent, _, child = name.rpartition(".")
            setattr(decoder.get_submodule(parent), child, AdaptedLinear(decoder.get_submodule(name), name, self))
        if any("embedding" in adapter.tables for adapter in self.adapters.values()):
            decoder.embedding = AdaptedEmbedding(decoder.embedding, self)
        if any("head" in adapter.tables for adapter in self.adapters.values()):
            every_id = torch.arange(decoder.config.vocabulary_size, device=weight.device)
            decoder.head.register_forward_hook(
                lambda _, inputs, logits: self.replace_logits(inputs[0], logits, every_id)
            )

    def select(self, counts: Sequence[tuple[str, int]]) -> None:
        """Set the adapters of the next call: names, "" for none, with their numbers of tokens."""
        groups = group_rows(counts)
        self._selected.rows = [(name, rows.to(self._device)) for name, rows in groups if name in self.adapters]

    def select_all(self, name: str) -> None:
        """Let all tokens of the next calls use one adapter, or none if the name is empty."""
        require_adapter(name, self)
        self._selected.rows = [(name, slice(None))] if name in self.adapters else []

    def active(self) -> Iterator[tuple[Adapter, Tensor | slice]]:
        """Yield the adapters in use with the rows of their tokens, of all rows [N, ...]."""
        return ((self.adapters[name], rows) for name, rows in getattr(self._selected, "rows", ()))

    def replace_logits(self, hidden: Tensor, logits: Tensor, token_ids: Tensor) -> Tensor:
        """Replace the logits of adapters with rows of the head, in place.

        Args:
            hidden: [..., M], input of the head.
            logits: [..., C], of some tokens.
            token_ids: [C] int64, the token of each column.
        """
        flat, output = hidden.flatten(0, -2), logits.view(-1, logits.shape[-1])
        for adapter, rows in self.active():
            if (table := adapter.tables.get("head")) is not None:
                index, is_replaced = find_rows(table.token_ids, token_ids)
                new = F.linear(flat[rows], table.rows[index[is_replaced]]).to(output.dtype)
                output[rows] = output[rows].index_copy(1, is_replaced.nonzero()[:, 0], new)
        return logits


def require_adapter(name: str, batch: AdapterBatch | None) -> None:
    """Raise `GenerationError` unless the name is empty or that of an attached adapter."""
    loaded = () if batch is None else tuple(filter(None, batch.adapters))
    if name and name not in loaded:
        raise GenerationError(
            f"adapter {name!r} is not loaded; expected one of the loaded ones: {', '.join(loaded) or 'none'}. "
            "Load it with the model, by adapters={name: folder}."
        )


def select_adapter(name: str, batch: AdapterBatch | None) -> None:
    """Let all tokens of the next calls in this thread use an adapter, or none if the name is empty.

    Raises:
        GenerationError: it is not attached.
    """
    require_adapter(name, batch)
    if batch is not None:
        batch.select_all(name)


class AdaptedLinear(nn.Module):
    """A linear layer, quantized or not, with the LoRA updates of several adapters."""

    def __init__(self, base: nn.Module, name: str, batch: AdapterBatch) -> None:
        super().__init__()
        self.base, self._name, self._batch = base, name, batch

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., I] to [..., O]."""
        output = self.base(x)
        flat = x.flatten(0, -2)
        for adapter, rows in self._batch.active():
            if (update := adapter.matrices.get(self._name)) is not None:
                part = F.linear(F.linear(flat[rows], update.lora_A), update.lora_B) * update.scale
                output.view(-1, output.shape[-1])[rows] += part
        return output


class AdaptedEmbedding(nn.Embedding):
    """An embedding with the replaced rows of several adapters."""

    def __init__(self, base: nn.Embedding, batch: AdapterBatch) -> None:
        super().__init__(base.num_embeddings, base.embedding_dim, _weight=base.weight.detach())
        self.weight, self._batch = base.weight, batch

    def forward(self, ids: Tensor) -> Tensor:
        """Map [...] int64 to [..., M]."""
        output = super().forward(ids)
        flat, view = ids.flatten(), output.view(-1, output.shape[-1])
        for adapter, rows in self._batch.active():
            if (table := adapter.tables.get("embedding")) is not None:
                index, is_replaced = find_rows(table.token_ids, flat[rows])
                view[rows] = torch.where(is_replaced.unsqueeze(-1), table.rows[index], view[rows])
        return output


def find_rows(token_ids: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Find ids in sorted token ids.

    Args:
        token_ids: [W] int64, ascending.
        ids: [N] int64.

    Returns:
        [N] int64, the index of each id, any where it has none; and [N] bool, whether it has one.
    """
    index = torch.searchsorted(token_ids, ids).clamp(max=len(token_ids) - 1)
    return index, token_ids[index] == ids


def group_rows(counts: Sequence[tuple[str, int]]) -> list[tuple[str, Tensor]]:
    """Return each name with the rows of its tokens, [n] int64, ascending.

    >>> group_rows([("a", 2), ("", 1), ("a", 1)])
    [('', tensor([2])), ('a', tensor([0, 1, 3]))]
    """
    rows = [name for name, count in counts for _ in range(count)]
    order = sorted(range(len(rows)), key=lambda row: (rows[row], row))
    return [(name, torch.tensor(list(group))) for name, group in groupby(order, key=lambda row: rows[row])]
