"""Train image tokenizers as one rank of several; see test_world.py.

Each run of `RUNS` is trained in FOLDER/NAME-SIZE, and each rank writes down what it ended with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calumma.documents.document import Document, Image
from calumma.tokens.vq.codebook import CodebookConfig
from calumma.tokens.vq.config import VQConfig
from calumma.train.config import CheckpointConfig
from calumma.train.config_image_tokenizer import (
    AugmentConfig,
    ImageTokenizerTrainConfig,
    RegionConfig,
    VQLossConfig,
)
from calumma.train.image_tokenizer_trainer import train_image_tokenizer
from tests.images import png

_BASE = ImageTokenizerTrainConfig(
    steps=4,
    batch_size=8,
    lr=1e-3,
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
            perceptual="pyramid",
            disc_weight=0.5,
            disc_start_step=1,
            disc_channels=32,
            disc_num_layers=1,
        ),
        regions=RegionConfig(faces="given", crop_size=32),
    ),
    "ibq": replace(_BASE, codebook=CodebookConfig(quantizer="ibq", entropy_weight=0.1)),
}


def documents() -> list[Document]:
    """Twelve pictures, every third of them with a face."""
    return [
        Document(
            id=str(number),
            content=(Image(data=png(number, 24)),),
            attributes={} if number % 3 else {"faces": "0.2 0.1 0.9 0.8"},
        )
        for number in range(12)
    ]


def train(folder: Path, ports: Sequence[str]) -> None:
    """Train all runs, each through a port of its own."""
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    for (name, config), port in zip(RUNS.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        run = folder / f"{name}-{size}"
        made = train_image_tokenizer(
            config, documents(), run, checkpoint=CheckpointConfig(interval=2)
        )
        (folder / f"{name}-{size}-rank-{rank}").write_text(made.fingerprint)
