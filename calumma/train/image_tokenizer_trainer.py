"""Training of the image tokenizer, a VQ-GAN, on the images of documents.

Shapes: B images, H and W pixels.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calumma.checkpoints.training_checkpoint import SavedCheckpoint
from calumma.documents.document import Document
from calumma.errors import CheckpointError
from calumma.model.bfloat16_products import has_bfloat16_products
from calumma.model.kv_cache import to_device_async
from calumma.runtime import resolve_device
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.vq.codebook import CodebookUpdater, flatten_latents
from calumma.tokens.vq.losses import (
    NLayerDiscriminator,
    PerceptualLoss,
    adaptive_disc_weight,
    build_perceptual_loss,
    discriminator_loss,
)
from calumma.tokens.vq.network import VQModel
from calumma.tokens.vq.quantize import export_network, normalize_latents, quantize_latents
from calumma.train.config import run_identity
from calumma.train.config_image_tokenizer import ImageTokenizerRunConfig, ImageTokenizerTrainConfig
from calumma.train.distributed import SINGLE_PROCESS, DistContext, init_distributed, require_divisible_batch
from calumma.train.image_dataset import ImageDataset
from calumma.train.region_losses import ImageRegions, build_region_losses, detect_regions
from calumma.train.step_metrics import DeferredMetrics, StepMetrics
from calumma.train.training_loop import DataPosition, TrainCallbacks, Trainer, run_loop


class ImageTokenizerTrainer(Trainer):
    """A `Trainer` of an image tokenizer."""

    def __init__(
        self,
        config: ImageTokenizerTrainConfig,
        dataset: ImageDataset,
        device: torch.device,
        dist: DistContext = SINGLE_PROCESS,
        regions: ImageRegions | None = None,
    ) -> None:
        self.config, self.dataset, self.regions = config, dataset, regions
        self.device, self.dist = device, dist
        self.vq_state = ImageTokenizerState(config, device=device, dist=dist)
        self.precision = self.vq_state.precision

    def step(self, number: int) -> DeferredMetrics:
        """Run one optimizer step."""
        started = time.perf_counter()
        consumed, factor = self.position.batches_consumed, self.position.lr_factor
        batch = self.dataset.batch(consumed, self.config.batch_size, self.config.seed, self.dist)
        pixels = to_device_async(batch.pixels, self.device)
        waited = time.perf_counter() - started
        found = self.regions.of(batch) if self.regions else {}
        regions = {kind: boxes.to(self.device) for kind, boxes in found.items()}
        metrics = image_tokenizer_step(self.vq_state, pixels, regions, lr_factor=factor)
        self.position = DataPosition(consumed + 1, factor)
        complete = replace(metrics, stage=self._stage(number), data_wait_seconds=waited)
        return DeferredMetrics(lambda: complete)

    def _stage(self, number: int) -> int:
        """Return the stage: quantization and the discriminator each change the loss."""
        losses = self.config.losses
        has_discriminator = losses.disc_weight > 0 and number >= losses.disc_start_step
        return 1 + (number >= self.config.quantize_start_step) + has_discriminator

    def state(self) -> dict[str, Any]:
        """Return weights, optimizer state and data position."""
        return {**self.vq_state.state_dict(), "position": asdict(self.position)}

    def restore(self, saved: SavedCheckpoint) -> None:
        """Load a state that `state` returned, on any number of ranks."""
        state = saved.load_full()
        self.vq_state.load_state_dict(state)
        self.position = DataPosition(**state["position"])


def train_image_tokenizer(
    config: ImageTokenizerRunConfig, documents: Iterable[Document], run: Path, callbacks: TrainCallbacks | None = None
) -> ImageTokenizer:
    """Train an image tokenizer, or resume the run, and write it to `run`.

    Under torchrun the ranks share each batch. The result is the same but for rounding, and any
    number of ranks may resume the run.

    Args:
        config: of the run.
        documents: their images are trained on.
        run: the run's folder.
        callbacks: are called at the start and after each step.

    Raises:
        ConfigError: the batch does not divide over the ranks.
        DocumentError: the documents have no images.
    """
    training = config.training
    device = resolve_device(config.device)
    dataset = ImageDataset(documents, training.network.resolution, training.augment)
    identity = run_identity(config, documents=dataset.fingerprint)
    with init_distributed(device, run) as dist:
        require_divisible_batch("training.batch_size", training.batch_size, dist.size)
        regions = detect_regions(training.regions, dataset, run, dist)
        trainer = ImageTokenizerTrainer(training, dataset, device, dist, regions)
        run_loop(trainer, run, config, identity, callbacks, dist)
        tokenizer = ImageTokenizer(trainer.vq_state.trained_network())
        if dist.is_main:
            tokenizer.save(run)
        dist.barrier()
    return tokenizer


class ImageTokenizerState:
    """Networks, optimizers, codebook statistics and random generator of a run."""

    def __init__(
        self,
        config: ImageTokenizerTrainConfig,
        *,
        perceptual: PerceptualLoss | None = None,
        device: str | torch.device = "cpu",
        dist: DistContext = SINGLE_PROCESS,
    ) -> None:
        """Initialize a run; `perceptual` overrides the loss that the config names."""
        self.config = config
        self.dist = dist
        self.step = 0
        self.precision: str = config.precision
        if config.precision == "auto":
            self.precision = "bfloat16" if has_bfloat16_products(torch.device(device)) else "float32"
        # Initial weights use torch's global generator: seed it, then restore it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = VQModel(config.network)
            self.discriminator = None
            if config.losses.disc_weight:
                self.discriminator = NLayerDiscriminator(
                    channels=config.losses.disc_channels, num_layers=config.losses.disc_num_layers
                )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.codebook_updater = CodebookUpdater(config.codebook, self.network.quantizer, dist)
        self.perceptual = perceptual or build_perceptual_loss(config.losses.perceptual)
        self.region_losses = build_region_losses(config.regions)
        modules = (self.network, self.codebook_updater, self.discriminator, self.perceptual)
        for module in (*modules, *self.region_losses.values()):
            if isinstance(module, nn.Module):
                module.to(device)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, betas=config.betas)
        self.discriminator_optimizer: torch.optim.Optimizer | None = None
        if self.discriminator is not None:
            parameters = self.discriminator.parameters()
            self.discriminator_optimizer = torch.optim.Adam(parameters, betas=config.betas)
        self.ema: dict[str, Tensor] | None = None
        if config.ema_decay:
            self.ema = {k: v.clone() for k, v in self.network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers and dicts of them."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {"step": self.step, "generator": self.generator.get_state(), "ema": self.ema, "parts": parts}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load a state; the next step has the same bits.

        Raises:
            CheckpointError: it has a discriminator or an EMA and this run has not, or vice versa.
        """
        parts = self._parts()
        if set(parts) != set(saved["parts"]) or (self.ema is None) != (saved["ema"] is None):
            raise CheckpointError(
                "the saved image tokenizer was trained with another discriminator or EMA; expected "
                "those of this config. Resume with the run's config.json, or choose another --out."
            )
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        self.step = saved["step"]
        self.generator.set_state(saved["generator"])
        if self.ema is not None:
            for name, tensor in self.ema.items():
                tensor.copy_(saved["ema"][name])

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "network": self.network,
            "codebook": self.codebook_updater,
            "optimizer": self.optimizer,
        }
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
            parts["discriminator_optimizer"] = self.discriminator_optimizer
        return parts

    def trained_network(self) -> VQModel:
        """Return a copy of the network for inference: its EMA, if there is one."""
        network = VQModel(self.config.network).to(self.network.quantizer.codebook.device)
        network.load_state_dict(self.ema or self.network.state_dict())
        return export_network(network, self.config.codebook).eval().requires_grad_(False)


def image_tokenizer_step(
    state: ImageTokenizerState, pixels: Tensor, regions: Mapping[str, Tensor] | None = None, *, lr_factor: float = 1.0
) -> StepMetrics:
    """Train on one batch; skip the update if the gradient is not finite.

    Args:
        state: is updated in place.
        pixels: [B, 3, H, W] float32 in [-1, 1], this rank's images.
        regions: [M, 5] of each kind that has a loss; see `RegionLoss`.
        lr_factor: factor of the scheduled learning rate.
    """
    config = state.config
    lr = config.lr_at(state.step) * lr_factor
    for optimizer in (state.optimizer, state.discriminator_optimizer):
        for group in optimizer.param_groups if optimizer is not None else ():
            group["lr"] = lr
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    # Dropout uses torch's global generator: seed it from the run's, so that a resumed run agrees.
    has_dropout = config.network.dropout > 0.0
    with torch.random.fork_rng(enabled=has_dropout):
        if has_dropout:
            seed = int(torch.randint(1 << 31, (), generator=state.generator))
            torch.manual_seed(seed + state.dist.rank)
        output, latents, codes, losses = _reconstruct(state, pixels)
    similarity = _reconstruction_loss(state, output, pixels, regions or {}, losses)
    total = similarity + losses.pop("quantization")
    if _is_adversarial(state):
        total = total + _adversarial_loss(state, output, similarity, losses)

    grad_norm = _update(state, total)
    is_finite = math.isfinite(grad_norm)
    if is_finite and _is_adversarial(state):
        losses["loss_discriminator"] = _train_discriminator(state, pixels, output.detach())
    losses["loss"] = total
    extra = _mean_losses(losses, state.dist)
    num_restarted = 0
    if is_finite and codes is not None:
        vectors, quantizer = flatten_latents(latents.detach()), state.network.quantizer
        num_restarted = state.codebook_updater.update(quantizer, vectors, codes.flatten(), state.generator)
    if is_finite:
        _update_ema(state)
    state.step += 1
    extra["codes_restarted"] = float(num_restarted)
    extra["codes_used"] = state.codebook_updater.usage
    extra["perplexity"] = state.codebook_updater.perplexity
    return StepMetrics(
        loss=extra.pop("loss"), grad_norm=grad_norm, lr=lr, step_skipped=int(not is_finite), extra=extra
    )


def _update(state: ImageTokenizerState, total: Tensor) -> float:
    """Update the network if the gradient is finite; return the norm of the gradient."""
    parameters = list(state.network.parameters())
    state.optimizer.zero_grad()
    total.backward()
    state.dist.average_gradients(parameters)
    norm = float(nn.utils.clip_grad_norm_(parameters, state.config.max_grad_norm))
    if math.isfinite(norm):
        state.optimizer.step()
    return norm


def _mean_losses(losses: dict[str, Tensor], dist: DistContext) -> dict[str, float]:
    """Return the means of the losses over all ranks."""
    if dist.size == 1:
        return {name: float(value.detach()) for name, value in losses.items()}
    values = torch.stack([value.detach().double() for value in losses.values()])
    return dict(zip(losses, (dist.sum(values) / dist.size).tolist(), strict=True))


def _autocast(state: ImageTokenizerState) -> torch.autocast:
    device = next(state.network.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=state.precision == "bfloat16")


def _reconstruct(
    state: ImageTokenizerState, pixels: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
    """Encode, quantize and decode; no codes before `quantize_start_step`."""
    network = state.network.train()
    codebook = state.config.codebook
    with _autocast(state):
        latents = network.encode_latents(pixels).float()
    latents = normalize_latents(latents, codebook)
    if state.step < state.config.quantize_start_step:
        with _autocast(state):
            output = network.decode_latents(latents).float()
        return output, latents, None, {"quantization": latents.new_zeros(())}
    if state.step == state.config.quantize_start_step:
        vectors = flatten_latents(latents.detach())
        state.codebook_updater.init_with_kmeans(network.quantizer, vectors, state.generator)
    quantized = quantize_latents(network.quantizer, latents, codebook, state.dist.mean)
    with _autocast(state):
        output = network.decode_latents(quantized.quantized).float()
    losses = {"quantization": quantized.loss, "loss_commitment": quantized.commitment}
    return output, latents, quantized.codes, losses


def _reconstruction_loss(
    state: ImageTokenizerState,
    output: Tensor,
    pixels: Tensor,
    regions: Mapping[str, Tensor],
    losses: dict[str, Tensor],
) -> Tensor:
    """Return the weighted pixel, perceptual and region losses, and add each to `losses`."""
    config = state.config.losses
    difference = output - pixels
    losses["loss_l1"] = difference.abs().mean()
    losses["loss_l2"] = difference.square().mean()
    total = config.l1_weight * losses["loss_l1"] + config.l2_weight * losses["loss_l2"]
    if state.perceptual is not None:
        losses["loss_perceptual"] = state.perceptual(output, pixels)
        total = total + config.perceptual_weight * losses["loss_perceptual"]
    for kind, region_loss in state.region_losses.items():
        losses[f"loss_{kind}"] = region_loss(output, pixels, regions[kind])
        total = total + state.config.regions.weights[kind] * losses[f"loss_{kind}"]
    return total


def _is_adversarial(state: ImageTokenizerState) -> bool:
    started = state.step >= state.config.losses.disc_start_step
    return state.discriminator is not None and started


def _adversarial_loss(
    state: ImageTokenizerState, output: Tensor, similarity: Tensor, losses: dict[str, Tensor]
) -> Tensor:
    assert state.discriminator is not None
    state.discriminator.requires_grad_(False)
    adversarial = -state.discriminator(output).mean()
    losses["loss_adversarial"] = adversarial
    last_weight = state.network.decoder.conv_out.weight
    weight = adaptive_disc_weight(similarity, adversarial, last_weight, state.dist.mean)
    return state.config.losses.disc_weight * weight * adversarial


def _train_discriminator(state: ImageTokenizerState, pixels: Tensor, output: Tensor) -> Tensor:
    assert state.discriminator is not None and state.discriminator_optimizer is not None
    state.discriminator.requires_grad_(True)
    loss = discriminator_loss(state.discriminator(pixels), state.discriminator(output))
    state.discriminator_optimizer.zero_grad()
    loss.backward()
    state.dist.average_gradients(state.discriminator.parameters())
    state.discriminator_optimizer.step()
    return loss


@torch.no_grad()
def _update_ema(state: ImageTokenizerState) -> None:
    if state.ema is None:
        return
    # A smaller decay in the first steps, or the initial weights would weigh too much for long.
    decay = min(state.config.ema_decay, (1 + state.step) / (10 + state.step))
    for name, tensor in state.network.state_dict().items():
        state.ema[name].lerp_(tensor, 1.0 - decay)
