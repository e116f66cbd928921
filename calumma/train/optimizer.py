"""Optimizers (AdamW, and Muon for the matrices of the blocks), and the state that checkpoints hold."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from calumma.checkpoints.training_checkpoint import SavedCheckpoint
from calumma.errors import ConfigError
from calumma.model.decoder import Decoder
from calumma.train.config import OptimizerConfig
from calumma.train.parallelize import device_mesh


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Build AdamW for all trained parameters, or for all but the blocks' matrices, with Muon.

    Vectors (norms) have no weight decay. Every group holds its peak learning rate as "peak_lr".

    Raises:
        ConfigError: Muon with sharded matrices.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [(n, p) for n, p in named if p.ndim == 2 and n.startswith("blocks.") and "norm" not in n]
    if config.name == "adamw":
        inner = []
    elif any(device_mesh(p) is not None for _, p in inner):
        raise ConfigError(
            "optimizer.name='muon' with matrices sharded over ranks; expected one process. Set "
            "optimizer.name='adamw', or start without torchrun."
        )
    taken = {name for name, _ in inner}
    rest = [(name, p) for name, p in named if name not in taken]
    optimizers: list[torch.optim.Optimizer] = [_adamw(rest, config)]
    if inner:
        muon = torch.optim.Muon([p for _, p in inner], lr=config.muon_lr, weight_decay=config.weight_decay)
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _adamw(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    # A fused step needs parameters that are sharded over the same mesh.
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


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set the learning rate of every group to its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def apply_gradients(optimizers: Iterable[torch.optim.Optimizer], grad_norm: Tensor) -> None:
    """Update the weights and clear the gradients; gradients that are not finite change nothing.

    AdamW decides on the device; Muon waits for the norm, a scalar.
    """
    found_inf = (~grad_norm.isfinite()).float()
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.AdamW):
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
            optimizer.step()
        elif not found_inf:
            optimizer.step()
        optimizer.zero_grad()


def optimizer_state(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, dict[str, Tensor]]:
    """Return the optimizer state of each parameter by name, independent of the number of ranks."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {names[parameter]: dict(state) for optimizer in optimizers for parameter, state in optimizer.state.items()}


def restore_optimizers(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Load what `optimizer_state` returned."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if names[parameter] in state:
                    optimizer.state[parameter] = dict(state[names[parameter]])


def decoder_state(decoder: Decoder, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Return the trained weights and the optimizer state of each."""
    return {"model": _trained_weights(decoder), "optimizer": optimizer_state(decoder, optimizers)}


def restore_decoder(saved: SavedCheckpoint, decoder: Decoder, optimizers: Sequence[torch.optim.Optimizer]) -> Any:
    """Load what `decoder_state` returned; return the whole state, tensors on the meta device."""
    state = saved.load_meta()
    parameters = dict(decoder.named_parameters())
    optimizer_states = {
        name: {key: _empty_like(tensor, parameters[name]) for key, tensor in entries.items()}
        for name, entries in state["optimizer"].items()
    }
    saved.load_into(state | {"model": _trained_weights(decoder), "optimizer": optimizer_states})
    restore_optimizers(decoder, optimizers, optimizer_states)
    return state


def _trained_weights(decoder: Decoder) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in decoder.named_parameters() if p.requires_grad}


def _empty_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Allocate an optimizer state, sharded like its parameter unless it is a scalar.

    Fused AdamW needs its step counter on the parameter's device.
    """
    if tensor.shape == parameter.shape:
        return torch.zeros_like(parameter, dtype=tensor.dtype)
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=parameter.device)
