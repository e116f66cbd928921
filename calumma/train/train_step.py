"""One optimizer step: forward, loss, backward, gradient clipping, update of the weights.

Nothing here reads a file, a clock or the environment. Shapes: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from calumma.batches.batch import DeviceBatch
from calumma.model.decoder import Decoder
from calumma.train.loss import LossSums, cross_entropy_and_z_loss, masked_sum
from calumma.train.parallelize import SINGLE_RANK, RankLayout, clip_grad_norm, set_requires_all_reduce
from calumma.train.step_metrics import StepMetrics
from calumma.vocabulary import Vocabulary


def optimizer_step(
    model: Decoder,
    optimizers: Sequence[torch.optim.Optimizer],
    micro_batches: Sequence[DeviceBatch],
    *,
    vocabulary: Vocabulary,
    z_loss_weight: float,
    max_grad_norm: float,
    layout: RankLayout = SINGLE_RANK,
) -> StepMetrics:
    """Train on micro-batches as if they were one batch on one rank.

    The loss is divided by the labels in the loss masks of all micro-batches on all ranks. Dividing
    per micro-batch would weight a token more where its micro-batch has few of them (padding,
    prompts). A gradient that is not finite is discarded: it would spoil every weight.

    Args:
        model: the decoder, sharded as `layout` says.
        optimizers: of its parameters.
        micro_batches: this rank's rows; gradients are accumulated over them.
        vocabulary: separates the losses of text and image tokens.
        z_loss_weight: weight of the z-loss.
        max_grad_norm: norm to which the gradient is clipped.
        layout: this rank's slice of the batch.
    """
    device = model.embedding.weight.device
    masks = [layout.shard_sequence(batch.loss_mask).sum() for batch in micro_batches]
    num_loss_tokens = layout.dist.sum(torch.stack(masks).sum()).clamp(min=1)
    sums = torch.zeros(9, dtype=torch.float64, device=device)
    max_logits = []
    for number, batch in enumerate(micro_batches, start=1):
        set_requires_all_reduce(model, number == len(micro_batches))
        loss, output_norms, num_tokens = _forward(model, batch, vocabulary, z_loss_weight, layout)
        (loss.total / num_loss_tokens).backward()
        sums += torch.stack([value.double() for value in (*loss[1:8], output_norms, num_tokens)])
        max_logits.append(loss.max_logit)
    norm, group_norms = clip_grad_norm(model.named_parameters(), max_grad_norm)
    max_logit = layout.dist.max(torch.stack(max_logits).amax())
    # One copy from the device for all metrics: the only point where it is waited for.
    scalars = torch.stack([norm, max_logit, *group_norms.values()]).double()
    values = torch.cat([scalars, layout.dist.sum(sums)]).tolist()
    grad_norm = values[0]
    for optimizer in optimizers:
        if math.isfinite(grad_norm):
            optimizer.step()
        optimizer.zero_grad()
    num_scalars = len(scalars)
    grad_norms = dict(zip(group_norms, values[2:num_scalars], strict=True))
    return _metrics(grad_norm, values[1], grad_norms, values[num_scalars:])


def _forward(
    model: Decoder, batch: DeviceBatch, vocabulary: Vocabulary, z_loss_weight: float, layout: RankLayout
) -> tuple[LossSums, Tensor, Tensor]:
    """Return the sums of the loss, of the output norms, and the number of tokens."""

    def head_fn(stream: Tensor) -> tuple[LossSums, Tensor, Tensor]:
        sums = cross_entropy_and_z_loss(
            model.norm(stream),
            model.head,
            layout.shard_sequence(batch.labels),
            layout.shard_sequence(batch.loss_mask),
            vocabulary,
            z_loss_weight=z_loss_weight,
        )
        inside = layout.shard_sequence(batch.document_ids) >= 0
        norms = stream.detach().norm(dim=-1)
        return sums, masked_sum(norms, inside), inside.sum()

    with autocast_context(batch.input_ids.device, layout):
        result: tuple[LossSums, Tensor, Tensor] = model(
            batch.input_ids, document_ids=batch.document_ids, position_ids=batch.position_ids, head_fn=head_fn
        )
        return result


def autocast_context(device: torch.device, layout: RankLayout) -> torch.autocast:
    """Return the context of a forward pass in the layout's dtype."""
    # FSDP2 gathers sharded weights in the lower precision and leaves autocast nothing to do.
    dtype = layout.compute_dtype
    lower = dtype != torch.float32 and layout.dist.size == 1
    return torch.autocast(device.type, dtype=dtype, enabled=lower)


def seed_step(seed: int, step: int, layout: RankLayout) -> None:
    """Seed torch's global generator, which dropout uses, for a step of a run on this rank.

    A resumed run so repeats the dropout of an undisturbed one; no two ranks share theirs.
    """
    torch.manual_seed(seed * 1_000_003 + step + layout.dist.rank * 1_000_000_007)


def _metrics(grad_norm: float, max_logit: float, grad_norms: dict[str, float], sums: list[float]) -> StepMetrics:
    text, image, control, num_text, num_image, num_control, log_z, output_norms, num_tokens = sums
    num_loss_tokens = max(1, num_text + num_image + num_control)
    return StepMetrics(
        loss=(text + image + control) / num_loss_tokens,
        loss_text=text / max(1, num_text),
        loss_image=image / max(1, num_image),
        log_z=log_z / num_loss_tokens,
        output_norm=output_norms / max(1, num_tokens),
        max_logit=max_logit,
        grad_norm=grad_norm,
        grad_norms=grad_norms,
        num_tokens=int(num_tokens),
        step_skipped=int(not math.isfinite(grad_norm)),
    )
