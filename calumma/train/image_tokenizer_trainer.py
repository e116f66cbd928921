"""An image tokenizer that learns from the pictures of documents."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from calumma.checkpoints.training_checkpoint import RetentionPolicy, SavedCheckpoint
from calumma.documents.document import Document
from calumma.errors import ConfigError
from calumma.files import fingerprint
from calumma.tokens.image import ImageTokenizer
from calumma.train.config import CheckpointConfig
from calumma.train.config_image_tokenizer import ImageTokenizerTrainConfig
from calumma.train.distributed import SINGLE_PROCESS, DistContext, init_distributed
from calumma.train.image_dataset import ImageDataset
from calumma.train.image_tokenizer_step import ImageTokenizerState, image_tokenizer_step
from calumma.train.metric_loggers import LogConfig
from calumma.train.region_losses import ImageRegions, detect_regions
from calumma.train.stability import StabilityConfig
from calumma.train.training_loop import DataPosition, LoopConfig, Progress, run_loop


class ImageTokenizerTrainer:
    """A `Learner` of pixels."""

    def __init__(
        self,
        config: ImageTokenizerTrainConfig,
        pictures: ImageDataset,
        device: torch.device,
        world: DistContext = SINGLE_PROCESS,
        regions: ImageRegions | None = None,
    ) -> None:
        self.config = config
        self.regions = regions
        self.pictures = pictures
        self.device = device
        self.world = world
        self.vq_state = ImageTokenizerState(config, device=device, dist=world)
        self.position = DataPosition()

    def step(self, number: int) -> dict[str, float]:
        """Learn from the step's pictures."""
        started = time.perf_counter()
        drawn = self.position.batches_consumed
        batch = self.pictures.batch(drawn, self.config.batch_size, self.config.seed, self.world)
        pixels = batch.pixels.to(self.device, non_blocking=True)
        waited = time.perf_counter() - started
        found = self.regions.of(batch) if self.regions else {}
        regions = {kind: rows.to(self.device) for kind, rows in found.items()}
        share = self.position.lr_factor
        report = image_tokenizer_step(self.vq_state, pixels, regions, lr_factor=share)
        self.position = DataPosition(drawn + 1, share)
        waited /= time.perf_counter() - started
        return {**report, "stage": self._stage(number), "data_wait_fraction": waited}

    def _stage(self, number: int) -> int:
        """Each of what changes the loss on the way is a stage: codes, and the discriminator."""
        losses = self.config.losses
        judged = losses.disc_weight > 0 and number >= losses.disc_start_step
        return 1 + (number >= self.config.quantize_start_step) + judged

    def apply_rollback(self, number: int, course: DataPosition) -> None:
        """Before a step: which pictures come, and at which share of the rate."""
        self.position = course

    def state(self) -> dict[str, Any]:
        """Networks, optimizers, codebook and generator, and which pictures come."""
        return {**self.vq_state.state_dict(), "course": asdict(self.position)}

    def restore(self, saved: SavedCheckpoint) -> None:
        """Go back to a state."""
        state = saved.load_full()
        self.vq_state.load_state_dict(state)
        self.position = DataPosition(**state["course"])


def train_image_tokenizer(
    config: ImageTokenizerTrainConfig,
    documents: Iterable[Document],
    run: Path,
    *,
    checkpoint: CheckpointConfig | None = None,
    progress: Progress = lambda step, metrics: None,
    device: str | torch.device = "cpu",
    watch: StabilityConfig | None = None,
    log: LogConfig | None = None,
) -> ImageTokenizer:
    """Train from the newest checkpoint, or from the start; the result stands in `run` too.

    Under torchrun the ranks share each batch; the result is the same, but for rounding, and may
    be gone on with by any number of ranks.

    Raises:
        ConfigError: the batch cannot be shared evenly by the ranks.
    """
    device = torch.device(device)
    pictures = ImageDataset(documents, config.network.resolution, config.augment)
    checkpoint = checkpoint or CheckpointConfig()
    text = json.dumps([asdict(config), pictures.fingerprint], sort_keys=True)
    loop = LoopConfig(
        steps=config.steps,
        save_every=checkpoint.interval,
        keep=RetentionPolicy(checkpoint.keep_latest, checkpoint.keep_every),
        beside=checkpoint.saves_async(device),
        fingerprint=fingerprint(text),
        watch=watch or StabilityConfig(),
        log=log or LogConfig(),
    )
    with init_distributed(device) as world:
        _require_even_shares(config.batch_size, world.size)
        regions = detect_regions(config.regions, pictures, run, world)
        learner = ImageTokenizerTrainer(config, pictures, device, world, regions)
        run_loop(learner, run, loop, progress, world)
        tokenizer = ImageTokenizer(learner.vq_state.trained_network())
        if world.is_main:
            tokenizer.save(run)
        world.barrier()
    return tokenizer


def _require_even_shares(batch_size: int, ranks: int) -> None:
    if batch_size % ranks:
        nearest = max(1, round(batch_size / ranks)) * ranks
        raise ConfigError(
            f"batch_size={batch_size} cannot be shared evenly by {ranks} ranks; the nearest that "
            f"can is batch_size={nearest}."
        )
