"""What is looked at now and then, because it costs more than what every step tells.

Shapes: B rows, T tokens, H query heads, K key heads, D head_dim, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from calumma.model.attention_backends import AttentionMetadata
from calumma.model.decoder import Decoder
from calumma.train.config import DiagnosticsConfig
from calumma.train.parallelize import RankLayout, parameter_group
from calumma.train.train_step import DeviceBatch, StepRules, lower_precision

SAMPLE = 1 << 12
"""Numbers of a rank's part of a tensor, at most, that tell how far a step moved it."""


@dataclass(frozen=True)
class Snapshot:
    """A decoder before a step, to be compared with itself after it."""

    decoder: Decoder
    place: RankLayout

    max_logits: Tensor
    """[L] greatest attention logits."""

    before: dict[str, Tensor]
    """Some numbers of each weight."""

    def metrics(self) -> dict[str, float]:
        """After the step: `max_attention_logit`, by layer too, and `update_ratio` of each part: how far
        its weights moved, as a share of their length."""
        tops = self.place.dist.max(self.max_logits).tolist()
        told = {f"max_attention_logit_{layer}": top for layer, top in enumerate(tops)}
        told["max_attention_logit"] = max(tops)
        for part, ratio in update_ratios(self.decoder, self.before, self.place).items():
            told[f"update_ratio_{part}"] = ratio
        return told


def take_snapshot(
    decoder: Decoder,
    micro: DeviceBatch,
    config: DiagnosticsConfig,
    rules: StepRules,
    place: RankLayout,
) -> Snapshot:
    """Look at a decoder before a step; called by all ranks together.

    Args:
        decoder: as it is trained.
        micro: the batch of which the first places are read once more, without dropout.
        config: how many places.
        rules: of the step.
        place: what of the batch is ours.
    """
    some = min(config.num_tokens, micro.ids.shape[1]) // place.tp_size * place.tp_size
    first = DeviceBatch(*(tensor[:1, :some] for tensor in micro))
    with lower_precision(rules.compute_dtype, first.ids.device, place):
        tops = max_attention_logits(decoder, first)
    return Snapshot(decoder, place, tops, sample_weights(decoder))


@torch.no_grad()
def max_attention_logits(decoder: Decoder, micro: DeviceBatch) -> Tensor:
    """The greatest logit, query times key over the root of D, of any head between any two places
    that see each other: [L] float32. Exact for these rows; of the heads that this rank holds."""
    tops = torch.zeros(decoder.config.num_layers, device=micro.ids.device)
    hooks = [
        block.register_forward_pre_hook(_instead(_attend(micro.owners, tops, layer)))
        for layer, block in enumerate(decoder.blocks)
    ]
    training = decoder.training
    decoder.eval()
    try:
        # Compiled blocks would not notice hooks that come and go.
        with torch.compiler.set_stance("force_eager"):
            decoder(
                micro.ids,
                document_ids=micro.owners,
                position_ids=micro.positions,
                head_fn=_as_it_is,
            )
    finally:
        decoder.train(training)
        for hook in hooks:
            hook.remove()
    return tops


def _as_it_is(stream: Tensor) -> Tensor:
    return stream


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def _instead(attend: Attend) -> Callable[[nn.Module, Any], Any]:
    """A hook that lets a block attend in another way."""

    def hook(
        block: nn.Module, given: tuple[Tensor, AttentionMetadata]
    ) -> tuple[Tensor, AttentionMetadata]:
        x, sight = given
        return x, replace(sight, attention_fn=attend)

    return hook


def _attend(owners: Tensor, tops: Tensor, layer: int) -> Attend:
    """Attention spelled out, which notes its greatest logit."""
    hidden = owners[:, None, None, :, None] != owners[:, None, None, None, :]  # [B, 1, 1, T, T]
    hidden = hidden | torch.ones_like(hidden[0, 0, 0]).triu(1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.unflatten(2, (k.shape[2], -1)).float()  # [B, T, K, H/K, D]
        logits = torch.einsum("btkgd,bskd->bkgts", grouped, k.float()) * q.shape[-1] ** -0.5
        logits = logits.masked_fill(hidden, -torch.inf)
        tops[layer] = logits.amax()
        mixed = torch.einsum("bkgts,bskd->btkgd", logits.softmax(-1), v.float())
        return mixed.flatten(2, 3).to(v.dtype)

    return attend


def sample_weights(decoder: Decoder) -> dict[str, Tensor]:
    """Evenly chosen numbers of each weight that learns, of those that this rank holds."""
    return {
        name: _some(parameter).clone()
        for name, parameter in decoder.named_parameters()
        if parameter.requires_grad
    }


def _some(parameter: nn.Parameter) -> Tensor:
    tensor = parameter.detach()
    ours = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    flat = ours.flatten()
    # An odd stride meets every column of a weight whose width is a power of two.
    return flat[:: (max(0, flat.numel() - 1) // SAMPLE + 1) | 1]


def update_ratios(
    decoder: Decoder, before: dict[str, Tensor], place: RankLayout
) -> dict[str, float]:
    """Length of what a step added to each part's weights, as a share of their length before.

    Args:
        decoder: after the step.
        before: what `sampled` gave before it.
        place: whose ranks share the decoder.
    """
    parameters = dict(decoder.named_parameters())
    squares: dict[str, Tensor] = {}
    for name, old in before.items():
        new = _some(parameters[name])
        both = torch.stack([(new - old).double().square().sum(), old.double().square().sum()])
        part = parameter_group(name)
        squares[part] = squares.get(part, torch.zeros_like(both)) + both / _copies(parameters[name])
    sums = place.dist.sum(torch.stack(list(squares.values()))).tolist()
    return {
        part: (moved / length) ** 0.5 if length else 0.0
        for part, (moved, length) in zip(squares, sums, strict=True)
    }


def _copies(parameter: nn.Parameter) -> int:
    """How many ranks hold the same numbers of it."""
    many = 1
    if isinstance(parameter, DTensor):
        for side, placement in enumerate(parameter.placements):
            many *= parameter.device_mesh.size(side) if isinstance(placement, Replicate) else 1
    return many
