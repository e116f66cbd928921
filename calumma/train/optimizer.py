"""Optimizers by parameter group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from calumma.errors import ConfigError
from calumma.train.config import OptimizerConfig
from calumma.train.parallelize import device_mesh


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW over everything, or Muon over the blocks' matrices and AdamW over the rest.

    Vectors (norms, biases) do not decay. Every group remembers its peak rate in "peak".

    Raises:
        ConfigError: Muon is asked for where ranks share the matrices.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [
        (n, p) for n, p in named if p.ndim == 2 and n.startswith("blocks.") and "norm" not in n
    ]
    if config.name == "adamw":
        inner = []
    elif any(device_mesh(p) is not None for _, p in inner):
        raise ConfigError(
            "optimizer.name='muon' wants whole matrices, and the ranks hold parts of them; expected "
            "one process. Use adamw, or start without torchrun."
        )
    taken = {name for name, _ in inner}
    rest = [(name, p) for name, p in named if name not in taken]
    optimizers: list[torch.optim.Optimizer] = [_adamw(rest, config)]
    if inner:
        muon = torch.optim.Muon(
            [p for _, p in inner], lr=config.muon_lr, weight_decay=config.weight_decay
        )
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _adamw(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    # A fused step takes tensors that are cut over one mesh.
    groups: dict[tuple[bool, DeviceMesh | None], list[nn.Parameter]] = {}
    for name, parameter in named:
        decays = parameter.ndim >= 2 and "norm" not in name
        groups.setdefault((decays, device_mesh(parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0}
            for (decays, _), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_lr(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Give every group its peak rate times `share`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


def optimizer_state(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> dict[str, dict[str, Tensor]]:
    """What the optimizers remember of each parameter, by its name: on any number of ranks alike."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        names[parameter]: dict(remembered)
        for optimizer in optimizers
        for parameter, remembered in optimizer.state.items()
    }


def restore_optimizers(
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    state: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Give the optimizers what `optimizer_state` told."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if names[parameter] in state:
                    optimizer.state[parameter] = dict(state[names[parameter]])
