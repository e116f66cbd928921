"""One step of the image tokenizer's training. Nothing here reads a file or a clock.

Shapes: B images, H and W pixels, D code_dim, h and w cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from calumma.errors import CheckpointError
from calumma.tokens.vq.codebook import CodebookUpdater, flatten_latents
from calumma.tokens.vq.losses import (
    NLayerDiscriminator,
    PerceptualLoss,
    adaptive_disc_weight,
    discriminator_loss,
)
from calumma.tokens.vq.network import VQModel
from calumma.tokens.vq.perceptual import build_perceptual_loss
from calumma.tokens.vq.quantize import export_network, normalize_latents, quantize
from calumma.train.config_image_tokenizer import ImageTokenizerTrainConfig
from calumma.train.distributed import SINGLE_PROCESS, DistContext
from calumma.train.region_losses import build_region_losses


class ImageTokenizerState:
    """All that a run carries from step to step, and from a stop to its resumption."""

    def __init__(
        self,
        config: ImageTokenizerTrainConfig,
        *,
        perceptual: PerceptualLoss | None = None,
        device: str | torch.device = "cpu",
        dist: DistContext = SINGLE_PROCESS,
    ) -> None:
        """Start a run; `perceptual` takes the place of the distance that the config names."""
        self.config = config
        self.dist = dist
        self.step = 0
        # The weights are drawn from torch's own generator, so it is set and put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = VQModel(config.network)
            self.discriminator = _discriminator(config)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.codebook_updater = CodebookUpdater(config.codebook, self.network.quantizer, dist)
        self.perceptual = perceptual or build_perceptual_loss(config.losses.perceptual)
        self.region_losses = build_region_losses(config.regions)
        parts = (self.network, self.codebook_updater, self.discriminator, self.perceptual)
        for part in (*parts, *self.region_losses.values()):
            if isinstance(part, nn.Module):
                part.to(device)
        learned = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(learned, betas=config.betas)
        self.discriminator_optimizer: torch.optim.Optimizer | None = None
        if self.discriminator is not None:
            parameters = self.discriminator.parameters()
            self.discriminator_optimizer = torch.optim.Adam(parameters, betas=config.betas)
        self.ema: dict[str, Tensor] | None = None
        if config.ema_decay:
            self.ema = {k: v.clone() for k, v in self.network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and dicts of them: all that `torch.load(weights_only=True)` takes."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {
            "step": self.step,
            "generator": self.generator.get_state(),
            "average": self.ema,
            "parts": parts,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave: the next step has the same bits.

        Raises:
            CheckpointError: it was saved by a run with or without a discriminator, unlike this.
        """
        parts = self._parts()
        if set(parts) != set(saved["parts"]) or (self.ema is None) != (saved["average"] is None):
            raise CheckpointError(
                "the saved image tokenizer was trained with other losses or averaging than this "
                "config's; expected the same. Go on with the config beside it, or use a new --out."
            )
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        self.step = saved["step"]
        self.generator.set_state(saved["generator"])
        if self.ema is not None:
            for name, tensor in self.ema.items():
                tensor.copy_(saved["average"][name])

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "network": self.network,
            "keeper": self.codebook_updater,
            "optimizer": self.optimizer,
        }
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
            parts["discriminator_optimizer"] = self.discriminator_optimizer
        return parts

    def trained_network(self) -> VQModel:
        """A copy of the network as it is to be kept: averaged, if the config says so, and plain."""
        network = VQModel(self.config.network).to(self.network.quantizer.codebook.device)
        network.load_state_dict(self.ema or self.network.state_dict())
        return export_network(network, self.config.codebook).eval().requires_grad_(False)


NO_REGIONS: Mapping[str, Tensor] = {}


def image_tokenizer_step(
    state: ImageTokenizerState,
    pixels: Tensor,
    regions: Mapping[str, Tensor] = NO_REGIONS,
    *,
    lr_factor: float = 1.0,
) -> dict[str, float]:
    """Learn from one batch; nothing, where its gradient is not finite.

    Args:
        state: is changed: weights, optimizers, codebook, generator, and `step` by one.
        pixels: [B, 3, H, W] float32 in [-1, 1]; under several ranks, this rank's share.
        regions: of each kind that the config gives a loss, [M, 5]; see `RegionLoss`.
        rate_share: what the schedule's rate is multiplied by.

    Returns:
        The losses, the share of codes used lately and the like, by name; "step_skipped" is 1 where
        nothing was learned.
    """
    config = state.config
    rate = config.lr_at(state.step) * lr_factor
    _set_rate(state, rate)
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    # What is dropped is drawn from torch's own generator: set by ours, so a resumed run agrees.
    drops = config.network.dropout > 0.0
    with torch.random.fork_rng(enabled=drops):
        if drops:
            drawn = int(torch.randint(1 << 31, (), generator=state.generator))
            torch.manual_seed(drawn + state.dist.rank)
        made, latents, codes, losses = _reconstruct(state, pixels)
    likeness = _likeness(state, made, pixels, losses)
    for kind, loss in state.region_losses.items():
        losses[f"loss_{kind}"] = loss(made, pixels, regions[kind])
        likeness = likeness + config.regions.weights[kind] * losses[f"loss_{kind}"]
    total = likeness + losses.pop("quantization")
    if _adversarial(state):
        total = total + _adversarial_loss(state, made, likeness, losses)

    gradient_norm = _step_back(state, total)
    learns = math.isfinite(gradient_norm)
    if learns and _adversarial(state):
        losses["loss_discriminator"] = _train_discriminator(state, pixels, made.detach())
    losses["loss"] = total
    report = _told(losses, state.dist)
    report["codes_restarted"] = float(_keep_codebook(state, latents, codes if learns else None))
    if learns:
        _average(state)
    state.step += 1
    return report | {
        "step_skipped": float(not learns),
        "grad_norm": gradient_norm,
        "lr": rate,
        "codes_used": state.codebook_updater.usage,
        "perplexity": state.codebook_updater.perplexity,
    }


def _step_back(state: ImageTokenizerState, total: Tensor) -> float:
    """Go down the gradient of all ranks, if it is finite; gives its length."""
    parameters = list(state.network.parameters())
    state.optimizer.zero_grad()
    total.backward()
    state.dist.average_gradients(parameters)
    length = float(nn.utils.clip_grad_norm_(parameters, state.config.max_grad_norm))
    if math.isfinite(length):
        state.optimizer.step()
    return length


def _told(losses: dict[str, Tensor], world: DistContext) -> dict[str, float]:
    """The losses as numbers, over all ranks."""
    if world.size == 1:
        return {name: float(value.detach()) for name, value in losses.items()}
    values = torch.stack([value.detach().double() for value in losses.values()])
    return dict(zip(losses, (world.sum(values) / world.size).tolist(), strict=True))


def _discriminator(config: ImageTokenizerTrainConfig) -> NLayerDiscriminator | None:
    losses = config.losses
    if losses.disc_weight == 0.0:
        return None
    return NLayerDiscriminator(channels=losses.disc_channels, num_layers=losses.disc_num_layers)


def _set_rate(state: ImageTokenizerState, rate: float) -> None:
    for optimizer in (state.optimizer, state.discriminator_optimizer):
        if optimizer is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate


def _autocast(state: ImageTokenizerState) -> torch.autocast:
    device = next(state.network.parameters()).device.type
    wanted = state.config.precision == "bfloat16"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=wanted)


def _reconstruct(
    state: ImageTokenizerState, pixels: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
    """Pixels there and back; no codes in the continuous steps."""
    network = state.network.train()
    codebook = state.config.codebook
    with _autocast(state):
        latents = network.encode_latents(pixels).float()
    latents = normalize_latents(latents, codebook)
    if state.step < state.config.quantize_start_step:
        with _autocast(state):
            made = network.decode_latents(latents).float()
        return made, latents, None, {"quantization": latents.new_zeros(())}
    if state.step == state.config.quantize_start_step:
        vectors = flatten_latents(latents.detach())
        state.codebook_updater.init_with_kmeans(network.quantizer, vectors, state.generator)
    found = quantize(network.quantizer, latents, codebook, state.dist.mean)
    with _autocast(state):
        made = network.decode_latents(found.quantized).float()
    return made, latents, found.codes, {
        "quantization": found.loss,
        "loss_commitment": found.commitment,
    }  # fmt: skip


def _likeness(
    state: ImageTokenizerState, made: Tensor, pixels: Tensor, losses: dict[str, Tensor]
) -> Tensor:
    """The losses that compare pixels; each is also noted in `losses`."""
    config = state.config.losses
    difference = made - pixels
    losses["loss_l1"] = difference.abs().mean()
    losses["loss_l2"] = difference.square().mean()
    total = config.l1_weight * losses["loss_l1"] + config.l2_weight * losses["loss_l2"]
    if state.perceptual is not None:
        losses["loss_perceptual"] = state.perceptual(made, pixels)
        total = total + config.perceptual_weight * losses["loss_perceptual"]
    return total


def _adversarial(state: ImageTokenizerState) -> bool:
    started = state.step >= state.config.losses.disc_start_step
    return state.discriminator is not None and started


def _adversarial_loss(
    state: ImageTokenizerState, made: Tensor, likeness: Tensor, losses: dict[str, Tensor]
) -> Tensor:
    assert state.discriminator is not None
    # Its weights need no gradients here; its input does.
    state.discriminator.requires_grad_(False)
    adversarial = -state.discriminator(made).mean()
    losses["loss_adversarial"] = adversarial
    last_weight = state.network.decoder.conv_out.weight
    share = adaptive_disc_weight(likeness, adversarial, last_weight, state.dist.mean)
    return state.config.losses.disc_weight * share * adversarial


def _train_discriminator(state: ImageTokenizerState, pixels: Tensor, made: Tensor) -> Tensor:
    assert state.discriminator is not None and state.discriminator_optimizer is not None
    state.discriminator.requires_grad_(True)
    loss = discriminator_loss(state.discriminator(pixels), state.discriminator(made))
    state.discriminator_optimizer.zero_grad()
    loss.backward()
    state.dist.average_gradients(state.discriminator.parameters())
    state.discriminator_optimizer.step()
    return loss


def _keep_codebook(state: ImageTokenizerState, latents: Tensor, codes: Tensor | None) -> int:
    if codes is None:
        return 0
    quantizer = state.network.quantizer
    return state.codebook_updater.update(
        quantizer, flatten_latents(latents.detach()), codes.flatten(), state.generator
    )


@torch.no_grad()
def _average(state: ImageTokenizerState) -> None:
    if state.ema is None:
        return
    # Young runs forget faster, or the first weights would stay in the mean for long.
    decay = min(state.config.ema_decay, (1 + state.step) / (10 + state.step))
    for name, tensor in state.network.state_dict().items():
        state.ema[name].lerp_(tensor, 1.0 - decay)
