"""Pre-training, start to end: shards in, a decoder out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calumma.files import fingerprint
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.shards.reader import ShardReader
from calumma.train.config import PretrainConfig, TrainConfig
from calumma.train.decoder_trainer import TrainJob, train_decoder
from calumma.train.hf_export import ExportConfig
from calumma.train.training_loop import Progress

CONFIG_NAME = "config.json"
_FREE = (
    "device",
    "checkpoint",
    "compute",
    "parallel",
    "diagnostics",
    "stability",
    "log",
)
"""Fields that, like all paths, may differ between two launches of one run."""


def run_fingerprint(config: TrainConfig, reader: ShardReader, start: str = "") -> str:
    """Twelve hex digits of all that decides what a run learns.

    Args:
        config: the run's config.
        reader: its shards.
        start: the fingerprint of the weights it starts from, where they are not fresh.
    """
    return course_fingerprint(config, reader.manifest.fingerprint, start)


def course_fingerprint(config: Any, *others: str) -> str:
    """Twelve hex digits of what a config says of a run's course, and of other fingerprints."""
    fields = {
        name: value
        for name, value in asdict(config).items()
        if name not in _FREE and not isinstance(value, Path)
    }
    for name in ("micro_batch_size", "num_workers"):
        fields.get("data", fields).pop(name, None)
    # Paths deeper down, such as those of preference tuning's pairs, count by what is in them.
    text = json.dumps([fields, *others], sort_keys=True, default=lambda path: "")
    return fingerprint(text)


def stage_two_start(config: PretrainConfig) -> int:
    """The first step, from 0, that draws from stage two's mixture."""
    return round(config.steps * (1 - config.stage_two_fraction))


def pretrain(
    config: PretrainConfig,
    run: Path,
    progress: Progress = lambda step, metrics: None,
    exports: ExportConfig | None = None,
) -> Decoder | None:
    """Train a fresh decoder through both stages; goes on from the newest checkpoint.

    Under torchrun the ranks share it.

    Args:
        config: the run's.
        run: its folder.
        progress: is told of each step.
        exports: what model folders hold beside the decoder. With it the run ends in `RUN/model`,
            made of its last checkpoint, and no process ever holds the decoder whole.

    Returns:
        The whole decoder, on the first rank; None on the others, and where there are exports.
    """
    reader = ShardReader(config.shards)
    shape = DecoderConfig(vocabulary_size=reader.manifest.vocabulary.size, **asdict(config.model))
    boundary, second = stage_two_start(config), config.stage_two_weights
    lesson = TrainJob(
        config,
        reader,
        lambda step: config.stage_one.weights if step < boundary else second,
        run_fingerprint(config, reader),
        exports=exports,
        gathers=exports is None,
    )
    return train_decoder(
        shape, lambda decoder: decoder.initial_weights(config.seed), lesson, run, progress
    )
