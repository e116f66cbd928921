"""Supervised fine-tuning on turns: only answers count in the loss."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from calumma.batches.stream import Stream
from calumma.model.decoder import Decoder
from calumma.runtime import choose_device
from calumma.shards.manifest import require_vocabulary
from calumma.shards.reader import ShardReader
from calumma.train.config import FinetuneConfig
from calumma.train.decoder import DecoderLearner
from calumma.train.loop import LoopConfig, Progress, run_loop
from calumma.train.pretrain import run_fingerprint
from calumma.vocabulary import Vocabulary


def finetune(
    config: FinetuneConfig,
    start: Decoder,
    vocabulary: Vocabulary,
    run: Path,
    progress: Progress = lambda step, metrics: None,
) -> Decoder:
    """Go on from `start` on the turns in the shards.

    Raises:
        ShardError: the shards were made with another vocabulary than the model's.
    """
    reader = ShardReader(config.shards)
    require_vocabulary(config.shards, reader.manifest.vocabulary, vocabulary)
    decoder = Decoder(replace(start.config, dropout=config.dropout))
    decoder.load_state_dict(start.state_dict())
    decoder.to(choose_device(config.device))

    stream = Stream(reader, config.stream)
    learner = DecoderLearner(decoder, stream, config, lambda step: config.weights)
    loop = LoopConfig(
        steps=config.steps,
        save_every=config.save_every,
        fingerprint=run_fingerprint(config, reader, _fingerprint(start)),
    )
    run_loop(learner, run, loop, progress)
    return decoder.eval()


def _fingerprint(decoder: Decoder) -> str:
    """Twelve hex digits of a decoder's weights."""
    digest = hashlib.sha256()
    for tensor in decoder.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
