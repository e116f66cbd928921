"""What training minimises: next-id cross-entropy over the whole vocabulary, and z-loss.

Shapes: B rows, T tokens, M model_dim, V vocabulary size, N counted targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calumma.vocabulary import Vocabulary

CHUNK = 2048
"""Targets whose logits are held at once: 65,536 float32 logits each are 0.5 GB."""


@dataclass(frozen=True)
class LossSums:
    """Sums over counted targets, nothing averaged, so that batches can be added."""

    total: Tensor
    """Scalar with a gradient: cross-entropy plus weighted z-loss, in nats."""

    text: Tensor
    image: Tensor
    control: Tensor
    """Scalars without a gradient: cross-entropy of targets of each modality, in nats."""

    num_text: Tensor
    num_image: Tensor
    num_control: Tensor

    z: Tensor
    """Scalar: the sum of log Z over counted targets."""


def summed_loss(
    hidden: Tensor,
    head: nn.Linear,
    targets: Tensor,
    counted: Tensor,
    vocabulary: Vocabulary,
    *,
    z_loss: float,
) -> LossSums:
    """Cross-entropy and z-loss of the counted targets.

    The z-loss is `z_loss` * (log Z)^2 with Z the softmax's denominator over the whole vocabulary,
    over the same targets as the cross-entropy. Source: Chameleon (arXiv:2405.09818), 1e-5.

    Args:
        hidden: [B, T, M] what the head reads.
        head: the output layer.
        targets: [B, T] int64 ids.
        counted: [B, T] bool.
        vocabulary: which ids are text and which are codes.
        z_loss: weight of the z-loss.
    """
    inputs, wanted = hidden[counted], targets[counted]  # [N, M], [N]
    totals, entropies, log_z = [], [], []
    for start in range(0, max(1, len(wanted)), CHUNK):
        logits = head(inputs[start : start + CHUNK]).float()
        z = logits.logsumexp(dim=-1)
        picked = logits.gather(1, wanted[start : start + CHUNK, None]).squeeze(1)
        entropy = z - picked
        totals.append(entropy.sum() + z_loss * z.square().sum())
        entropies.append(entropy.detach())
        log_z.append(z.detach().sum())
    entropy = torch.cat(entropies)
    is_image = (wanted >= vocabulary.codes.start) & (wanted < vocabulary.codes.stop)
    is_text = wanted >= vocabulary.text.start
    is_control = ~(is_image | is_text)
    return LossSums(
        total=torch.stack(totals).sum(),
        text=entropy[is_text].sum(),
        image=entropy[is_image].sum(),
        control=entropy[is_control].sum(),
        num_text=is_text.sum(),
        num_image=is_image.sum(),
        num_control=is_control.sum(),
        z=torch.stack(log_z).sum(),
    )


def owner_mask(owners: Tensor) -> Tensor:
    """Causal attention inside each sequence of a packed row.

    Args:
        owners: [B, T] int64, equal where two places belong to one sequence.

    Returns:
        [B, 1, T, T] bool, True where a place may look. Padding sees padding, never a sequence.
    """
    same = owners[:, :, None] == owners[:, None, :]
    length = owners.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=owners.device).tril()
    return (same & causal)[:, None]
