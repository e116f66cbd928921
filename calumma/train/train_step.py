"""One optimizer step. Nothing here reads a file, a clock or the environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calumma.batches.batch import Batch
from calumma.model.decoder import Decoder
from calumma.train.loss import LossSums, cross_entropy_and_z_loss
from calumma.train.parallelize import RankLayout, clip_grad_norm
from calumma.vocabulary import Vocabulary

ALL = RankLayout()
"""One process that works on whole batches."""


@dataclass(frozen=True)
class StepReport:
    """What one step saw; losses in nats for each counted target."""

    loss: float
    loss_text: float
    loss_image: float
    log_z: float
    max_logit: float
    output_norm: float
    grad_norm: float

    grad_norms: dict[str, float]
    """Of each part: embedding, attention, feed_forward, norms, head."""

    num_tokens: int

    step_skipped: int
    """1 where the gradient was not finite and nothing was learned, else 0."""


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """What stays the same from step to step."""

    vocabulary: Vocabulary
    z_loss_weight: float
    max_grad_norm: float

    compute_dtype: torch.dtype = torch.float32
    """Of matrix products; below float32 they run under autocast, and weights stay as they are."""


def optimizer_step(
    model: Decoder,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Sequence[Batch],
    rules: StepRules,
    place: RankLayout = ALL,
) -> StepReport:
    """Learn from `batches` as if they were one batch on one machine.

    The loss is divided by the counted targets of all batches on all ranks. Dividing batch by
    batch would weigh a token more where its batch has few counted targets (padding, prompts).
    A gradient that is not finite is thrown away: one such step would spoil every weight.
    """
    device = model.embedding.weight.device
    micros = [to_device(batch, device) for batch in batches]
    counted = torch.stack([place.shard_sequence(micro.counted).sum() for micro in micros]).sum()
    num_counted = place.dist.sum(counted).clamp(min=1)
    seen = torch.zeros(len(_Seen._fields), dtype=torch.float64, device=device)
    largest = []
    for micro in micros:
        sums, told = _loss(model, micro, rules, place)
        (sums.total / num_counted).backward()
        seen += torch.stack([value.double() for value in told])
        largest.append(sums.max_logit)
    norm, parts = clip_grad_norm(model.named_parameters(), rules.max_grad_norm)
    largest_logit = place.dist.max(torch.stack(largest).amax())
    # All that is told comes from the device at once: it waits for us no more than this.
    lone = torch.stack([norm, largest_logit, *parts.values()]).double()
    told = torch.cat([lone, place.dist.sum(seen)]).tolist()
    gradient_norm, largest_told, *rest = told
    for optimizer in optimizers:
        if math.isfinite(gradient_norm):
            optimizer.step()
        optimizer.zero_grad()
    norms = dict(zip(parts, rest, strict=False))
    return _report(_Seen(*rest[len(parts) :]), largest_told, gradient_norm, norms)


class DeviceBatch(NamedTuple):
    """The tensors of one batch, each [B, T]."""

    ids: Tensor
    targets: Tensor
    counted: Tensor
    owners: Tensor
    positions: Tensor


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """A batch where it is computed on."""
    arrays = (
        batch.input_ids,
        batch.labels,
        batch.loss_mask,
        batch.document_ids,
        batch.position_ids,
    )
    return DeviceBatch(*(torch.from_numpy(array).to(device) for array in arrays))


class _Seen(NamedTuple):
    """Sums over the places of a step."""

    text: Any
    image: Any
    control: Any
    num_text: Any
    num_image: Any
    num_control: Any
    z: Any
    norms: Any
    num_tokens: Any


def _loss(
    model: Decoder, micro: DeviceBatch, rules: StepRules, place: RankLayout
) -> tuple[LossSums, Sequence[Tensor]]:
    def read(stream: Tensor) -> tuple[LossSums, Sequence[Tensor]]:
        sums = cross_entropy_and_z_loss(
            model.norm(stream),
            model.head,
            place.shard_sequence(micro.targets),
            place.shard_sequence(micro.counted),
            rules.vocabulary,
            z_loss_weight=rules.z_loss_weight,
        )
        inside = place.shard_sequence(micro.owners) >= 0
        norms = stream.detach()[inside].norm(dim=-1)
        return sums, (*sums[1:8], norms.sum(), inside.sum())

    with lower_precision(rules.compute_dtype, micro.ids.device, place):
        told: tuple[LossSums, Sequence[Tensor]] = model(
            micro.ids,
            document_ids=micro.owners,
            position_ids=micro.positions,
            head_fn=read,
        )
        return told


def lower_precision(dtype: torch.dtype, device: torch.device, place: RankLayout) -> torch.autocast:
    """What a forward pass with products of this dtype runs under."""
    # Sharded, weights are gathered in the lower precision, and autocast has nothing left to do.
    lower = dtype != torch.float32 and place.dist.size == 1
    return torch.autocast(device.type, dtype=dtype, enabled=lower)


def seed_step(seed: int, number: int, place: RankLayout) -> None:
    """Seed torch's global generator, which dropout draws from, for step `number` of a run.

    So a resumed run draws what an undisturbed one would have drawn. No two ranks drop alike.
    """
    torch.manual_seed(seed * 1_000_003 + number + place.dist.rank * 1_000_000_007)


def _report(
    seen: _Seen, largest_logit: float, gradient_norm: float, gradient_norms: dict[str, float]
) -> StepReport:
    """What the sums tell."""
    counted = seen.num_text + seen.num_image + seen.num_control
    return StepReport(
        loss=(seen.text + seen.image + seen.control) / max(1, counted),
        loss_text=seen.text / max(1, seen.num_text),
        loss_image=seen.image / max(1, seen.num_image),
        log_z=seen.z / max(1, counted),
        output_norm=seen.norms / max(1, seen.num_tokens),
        max_logit=largest_logit,
        grad_norm=gradient_norm,
        grad_norms=gradient_norms,
        num_tokens=int(seen.num_tokens),
        step_skipped=int(not math.isfinite(gradient_norm)),
    )
