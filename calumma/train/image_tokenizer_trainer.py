"""Training of the image tokenizer on the images of documents."""

import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from calumma.checkpoints.training_checkpoint import SavedCheckpoint
from calumma.documents.document import Document
from calumma.runtime import resolve_device
from calumma.tokens.image import ImageTokenizer
from calumma.train.config import run_identity
from calumma.train.config_image_tokenizer import ImageTokenizerRunConfig, ImageTokenizerTrainConfig
from calumma.train.distributed import SINGLE_PROCESS, DistContext, init_distributed, require_divisible_batch
from calumma.train.image_dataset import ImageDataset
from calumma.train.image_tokenizer_step import ImageTokenizerState, image_tokenizer_step
from calumma.train.region_losses import ImageRegions, detect_regions
from calumma.train.step_metrics import DeferredMetrics
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

    def step(self, number: int) -> DeferredMetrics:
        """Run one optimizer step."""
        started = time.perf_counter()
        consumed, factor = self.position.batches_consumed, self.position.lr_factor
        batch = self.dataset.batch(consumed, self.config.batch_size, self.config.seed, self.dist)
        pixels = batch.pixels.to(self.device, non_blocking=True)
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
