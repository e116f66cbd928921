"""Diagnostics too expensive for every step: maximum attention logits, update-to-weight ratios.

Shapes: B rows, T tokens, H query heads, K key heads, D head_dim, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from calumma.batches.batch import DeviceBatch
from calumma.model.attention_backends import AttentionMetadata, build_attention_metadata
from calumma.model.decoder import Decoder
from calumma.runtime import sum_dtype
from calumma.train.compile_and_recompute import autocast_context
from calumma.train.parallelize import SINGLE_RANK, RankLayout, parameter_group
from calumma.train.step_metrics import DeferredNumbers

MAX_SAMPLED_ELEMENTS = 1 << 12
"""Most elements of a rank's shard of a tensor that the update-to-weight ratio is estimated from."""


@dataclass(frozen=True)
class Snapshot:
    """State of a decoder before a step, to be compared with the state after it."""

    decoder: Decoder
    layout: RankLayout

    max_logits: Tensor
    """[L] maximum attention logit of each layer."""

    before: dict[str, Tensor]
    """Sampled elements of each weight."""

    def measure(self) -> Callable[[], dict[str, float]]:
        """Compare with the decoder after the step.

        Returns:
            A function that waits for the results: `max_attention_logit`, also by layer, and
            `update_ratio_GROUP`.
        """
        ratios = update_ratios(self.decoder, self.before, self.layout)
        maxima = self.layout.dist.max(self.max_logits).to(sum_dtype(self.max_logits.device))
        numbers = DeferredNumbers(torch.cat([maxima, *(ratio[None] for ratio in ratios.values())]))

        def read() -> dict[str, float]:
            values, num_layers = numbers.read(), len(maxima)
            metrics = {f"max_attention_logit_{layer}": value for layer, value in enumerate(values[:num_layers])}
            metrics["max_attention_logit"] = max(values[:num_layers])
            names = [f"update_ratio_{group}" for group in ratios]
            return metrics | dict(zip(names, values[num_layers:], strict=True))

        return read


def take_snapshot(decoder: Decoder, batch: DeviceBatch, num_tokens: int, layout: RankLayout) -> Snapshot:
    """Measure a decoder before a step; all ranks must call it.

    Args:
        decoder: in training.
        batch: its first row is read once more, without dropout.
        num_tokens: leading tokens of that row to read.
        layout: this rank's slice of the batch.
    """
    num_tokens = min(num_tokens, batch.input_ids.shape[1]) // layout.tp_size * layout.tp_size
    first = DeviceBatch(*(tensor[:1, :num_tokens] for tensor in batch))
    with autocast_context(first.input_ids.device, layout):
        max_logits = max_attention_logits(decoder, first, layout)
    return Snapshot(decoder, layout, max_logits, sample_weights(decoder))


@torch.no_grad()
def max_attention_logits(decoder: Decoder, batch: DeviceBatch, layout: RankLayout = SINGLE_RANK) -> Tensor:
    """Return [L] float32, the maximum of query times key over the root of D, unmasked pairs only.

    It is exact for these rows and for the heads that this rank holds.
    """
    maxima = torch.zeros(decoder.config.num_layers, device=batch.input_ids.device)
    hooks = [
        block.register_forward_pre_hook(_recording_attention(batch.document_ids, maxima, layer, layout))
        for layer, block in enumerate(decoder.blocks)
    ]
    training = decoder.training
    decoder.eval()
    try:
        # Compiled blocks would not notice hooks that come and go.
        with torch.compiler.set_stance("force_eager"):
            metadata = build_attention_metadata(
                batch.input_ids,
                decoder.config,
                document_ids=batch.document_ids,
                position_ids=batch.position_ids,
                host_document_ids=batch.host_document_ids,
            )
            decoder(batch.input_ids, metadata=layout.shard_metadata(metadata), head_fn=lambda stream: stream)
    finally:
        decoder.train(training)
        for hook in hooks:
            hook.remove()
    return maxima


def _recording_attention(document_ids: Tensor, maxima: Tensor, layer: int, layout: RankLayout) -> Any:
    """Return a forward pre-hook of a block: explicit attention that records its maximum logit."""
    documents = document_ids[:, None, None, :, None]  # [B, 1, 1, T, 1]
    hidden = documents != documents.mT
    hidden = hidden | torch.ones_like(hidden[0, 0, 0]).triu(1)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.unflatten(2, (k.shape[2], -1)).float()  # [B, T, K, H/K, D]
        logits = torch.einsum("btkgd,bskd->bkgts", grouped, k.float()) * q.shape[-1] ** -0.5
        logits = logits.masked_fill(hidden, -torch.inf)
        maxima[layer] = logits.amax()
        mixed = torch.einsum("bkgts,bskd->btkgd", logits.softmax(-1), v.float())
        return mixed.flatten(2, 3).to(v.dtype)

    def hook(block: nn.Module, inputs: tuple[Tensor, AttentionMetadata]) -> tuple[Tensor, AttentionMetadata]:
        x, metadata = inputs
        return x, replace(metadata, attention_fn=layout.shard_attention(attention))

    return hook


def sample_weights(decoder: Decoder) -> dict[str, Tensor]:
    """Return evenly spaced elements of this rank's shard of each trained weight."""
    return {
        name: _sample(parameter).clone() for name, parameter in decoder.named_parameters() if parameter.requires_grad
    }


def _sample(parameter: nn.Parameter) -> Tensor:
    tensor = parameter.detach()
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    flat = local.flatten()
    # An odd stride meets every column of a weight whose width is a power of two.
    return flat[:: (max(0, flat.numel() - 1) // MAX_SAMPLED_ELEMENTS + 1) | 1]


def update_ratios(decoder: Decoder, before: dict[str, Tensor], layout: RankLayout) -> dict[str, Tensor]:
    """Return the norm of a step's update over the norm of the weights before it, by group.

    The ratios are scalars of `sum_dtype`; 0 where the weights are 0.

    Args:
        decoder: after the step.
        before: result of `sample_weights` before it.
        layout: the ranks that share the decoder.
    """
    parameters = dict(decoder.named_parameters())
    squares: dict[str, Tensor] = {}
    for name, old in before.items():
        new = _sample(parameters[name])
        dtype = sum_dtype(old.device)
        both = torch.stack([(new - old).to(dtype).square().sum(), old.to(dtype).square().sum()])
        both /= _copies(parameters[name])
        group = parameter_group(name)
        squares[group] = squares.get(group, torch.zeros_like(both)) + both
    moved, length = layout.dist.sum(torch.stack(list(squares.values()))).unbind(1)
    ratios = torch.where(length > 0, moved / length, 0.0).sqrt()
    return dict(zip(squares, ratios.unbind(), strict=True))


def _copies(parameter: nn.Parameter) -> int:
    """Return the number of ranks that hold the same elements."""
    many = 1
    if isinstance(parameter, DTensor):
        for side, placement in enumerate(parameter.placements):
            many *= parameter.device_mesh.size(side) if isinstance(placement, Replicate) else 1
    return many
