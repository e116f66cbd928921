"""Optimizers by parameter group."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from calumma.train.config import OptimizerConfig


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW over everything, or Muon over the blocks' matrices and AdamW over the rest.

    Vectors (norms, biases) do not decay. Every group remembers its peak rate in "peak".
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [
        (n, p) for n, p in named if p.ndim == 2 and n.startswith("blocks.") and "norm" not in n
    ]
    if config.kind == "adamw":
        inner = []
    taken = {name for name, _ in inner}
    rest = [(name, p) for name, p in named if name not in taken]
    optimizers: list[torch.optim.Optimizer] = [_adamw(rest, config)]
    if inner:
        muon = torch.optim.Muon(
            [p for _, p in inner], lr=config.muon_rate, weight_decay=config.weight_decay
        )
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _adamw(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in named:
        plain = parameter.ndim < 2 or "norm" in name
        (vectors if plain else matrices).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.peak_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )


def set_rates(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Give every group its peak rate times `share`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
