"""One optimizer step. Nothing here reads a file, a clock or the environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from calumma.batches.batch import Batch
from calumma.model.decoder import Decoder
from calumma.train.loss import LossSums, summed_loss
from calumma.vocabulary import Vocabulary


@dataclass(frozen=True)
class StepReport:
    """What one step saw; losses in nats for each counted target."""

    loss: float
    loss_text: float
    loss_image: float
    z: float
    output_norm: float
    gradient_norm: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """What stays the same from step to step."""

    vocabulary: Vocabulary
    z_loss: float
    max_gradient_norm: float

    computed_in: torch.dtype = torch.float32
    """Of matrix products; below float32 they run under autocast, and weights stay as they are."""


def optimizer_step(
    model: Decoder,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Sequence[Batch],
    rules: StepRules,
) -> StepReport:
    """Learn from `batches` as if they were one batch.

    The loss is divided by the counted targets of all batches. Dividing batch by batch would
    weigh a token more where its batch has few counted targets (padding, prompts).
    """
    num_counted = max(1, sum(batch.num_counted for batch in batches))
    sums: list[LossSums] = []
    norms: list[float] = []
    for batch in batches:
        one, norm = _loss(model, batch, rules)
        (one.total / num_counted).backward()
        sums.append(one)
        norms.append(norm)
    gradient_norm = nn.utils.clip_grad_norm_(model.parameters(), rules.max_gradient_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return StepReport(
        loss=_mean(sums, ("text", "image", "control")),
        loss_text=_mean(sums, ("text",)),
        loss_image=_mean(sums, ("image",)),
        z=float(sum(one.z for one in sums)) / num_counted,
        output_norm=sum(norms) / len(norms),
        gradient_norm=float(gradient_norm),
        num_tokens=sum(int((batch.owners >= 0).sum()) for batch in batches),
    )


def _loss(model: Decoder, batch: Batch, rules: StepRules) -> tuple[LossSums, float]:
    device = model.embedding.weight.device
    owners = torch.from_numpy(batch.owners).to(device)
    lower = rules.computed_in != torch.float32
    with torch.autocast(device.type, dtype=rules.computed_in, enabled=lower):
        stream = model.stream(
            torch.from_numpy(batch.ids).to(device),
            owners=owners,
            positions=torch.from_numpy(batch.positions).to(device),
        )
        sums = summed_loss(
            model.norm(stream),
            model.head,
            torch.from_numpy(batch.targets).to(device),
            torch.from_numpy(batch.counted).to(device),
            rules.vocabulary,
            z_loss=rules.z_loss,
        )
    norms = stream.detach()[owners >= 0].norm(dim=-1)
    return sums, float(norms.sum()) / max(1, len(norms))


def _mean(sums: Sequence[LossSums], modalities: Sequence[str]) -> float:
    total = sum(float(getattr(one, name)) for one in sums for name in modalities)
    count = sum(int(getattr(one, f"num_{name}")) for one in sums for name in modalities)
    return total / count if count else 0.0
