"""Supervised fine-tuning on turns: only answers count in the loss."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from calumma.model.decoder import Decoder
from calumma.shards.manifest import require_vocabulary
from calumma.shards.reader import ShardReader
from calumma.train.config import FinetuneConfig
from calumma.train.decoder import Lesson, learn
from calumma.train.loop import Progress
from calumma.train.pretrain import run_fingerprint
from calumma.vocabulary import Vocabulary


def finetune(
    config: FinetuneConfig,
    start: Decoder,
    vocabulary: Vocabulary,
    run: Path,
    progress: Progress = lambda step, metrics: None,
) -> Decoder | None:
    """Go on from `start` on the turns in the shards; under torchrun the ranks share it.

    Returns:
        The whole decoder, on the first rank; None on the others.

    Raises:
        ShardError: the shards were made with another vocabulary than the model's.
    """
    reader = ShardReader(config.shards)
    require_vocabulary(config.shards, reader.manifest.vocabulary, vocabulary)
    shape = replace(start.config, dropout=config.dropout)
    lesson = Lesson(
        config,
        reader,
        lambda step: config.weights,
        run_fingerprint(config, reader, _fingerprint(start)),
    )
    return learn(shape, lambda decoder: start.state_dict().items(), lesson, run, progress)


def _fingerprint(decoder: Decoder) -> str:
    """Twelve hex digits of a decoder's weights."""
    digest = hashlib.sha256()
    for tensor in decoder.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
