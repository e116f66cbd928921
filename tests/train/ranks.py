"""Train image tokenizers as one rank of several; see test_distributed.py.

Each run of `RUNS` is trained in FOLDER/NAME-SIZE; each rank writes the fingerprint of its result.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from calumma.documents.document import Document, Image
from calumma.tokens.vq.codebook import CodebookConfig
from calumma.tokens.vq.config import VQConfig
from calumma.train.config_image_tokenizer import (
    AugmentConfig,
    ImageTokenizerCheckpointConfig,
    ImageTokenizerRunConfig,
    ImageTokenizerTrainConfig,
    RegionConfig,
    VQLossConfig,
)
from calumma.train.distributed import init_distributed
from calumma.train.image_tokenizer_trainer import train_image_tokenizer
from tests.images import png

_BASE = ImageTokenizerTrainConfig(
    steps=4,
    batch_size=8,
    lr=1e-3,
    precision="float32",
    network=VQConfig(
        resolution=16,
        base_channels=64,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        latent_channels=8,
        code_dim=4,
        num_codes=16,
    ),
    augment=AugmentConfig(min_crop_scale=0.5, horizontal_flip=True),
)
RUNS = {
    "means": replace(
        _BASE,
        quantize_start_step=2,
        ema_decay=0.9,
        codebook=CodebookConfig(update="ema", decay=0.9, legacy=False, dead_code_restart_steps=1),
        losses=VQLossConfig(
            perceptual="pyramid", disc_weight=0.5, disc_start_step=1, disc_channels=32, disc_num_layers=1
        ),
        regions=RegionConfig(faces="given", crop_size=32),
    ),
    "ibq": replace(_BASE, codebook=CodebookConfig(quantizer="ibq", entropy_weight=0.1)),
}


def run_config(config: ImageTokenizerTrainConfig) -> ImageTokenizerRunConfig:
    """Return the config of a run with a checkpoint every second step."""
    return ImageTokenizerRunConfig(
        documents=[], training=config, device="cpu", checkpoint=ImageTokenizerCheckpointConfig(interval=2)
    )


def documents() -> list[Document]:
    """Return twelve images, every third with a face."""
    return [
        Document(
            id=str(number),
            content=(Image(data=png(number, 24)),),
            attributes={} if number % 3 else {"faces": "0.2 0.1 0.9 0.8"},
        )
        for number in range(12)
    ]


def train(folder: Path, ports: Sequence[str]) -> None:
    """Train all runs, each with a port of its own."""
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    for (name, config), port in zip(RUNS.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        run = folder / f"{name}-{size}"
        made = train_image_tokenizer(run_config(config), documents(), run)
        (folder / f"{name}-{size}-rank-{rank}").write_text(made.fingerprint)


def wait_for_a_hanging_rank(folder: Path) -> None:
    """Rank 1 joins no more collectives; write how long rank 0 waits for it."""
    waited, started = folder / "waited", 0.0
    with contextlib.suppress(RuntimeError), init_distributed(torch.device("cpu"), folder, timeout_seconds=1) as dist:
        dist.limit_waiting(in_steps=True)
        dist.limit_waiting(in_steps=False)
        if dist.rank == 1:
            time.sleep(2)
        dist.barrier()  # outside the steps, ranks wait longer
        dist.limit_waiting(in_steps=True)
        started = time.perf_counter()
        if dist.rank == 1:
            while not waited.exists() and time.perf_counter() - started < 60:
                time.sleep(0.05)
            os._exit(0)
        dist.barrier()
    waited.write_text(str(time.perf_counter() - started))
