"""Supervised fine-tuning on turns: only answers count in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from calumma.batches.modality_balance import ModalityBalance, equalize_pairings, measure_balance
from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.files import fingerprint, write_json
from calumma.model.decoder import Decoder
from calumma.runtime import is_first_rank
from calumma.shards.manifest import require_vocabulary
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers
from calumma.train.adapters import (
    apply_adapters,
    initial_adapter_weights,
    merge_adapters,
    require_shardable,
    save_adapter,
)
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.decoder_trainer import TrainJob, train_decoder
from calumma.train.hf_export import ExportConfig, Tensors, as_they_are
from calumma.train.parallelize import ModelTransform
from calumma.train.pretrain import run_fingerprint
from calumma.train.training_loop import Progress
from calumma.vocabulary import Vocabulary

BALANCE_NAME = "balance.json"


def finetune(
    config: FinetuneConfig,
    start: Decoder,
    vocabulary: Vocabulary,
    run: Path,
    progress: Progress = lambda step, metrics: None,
    *,
    tokenizers: Tokenizers | None = None,
) -> Decoder | None:
    """Go on from `start` on the turns in the shards; under torchrun the ranks share it.

    The run's folder gets `balance.json`, what the mixture comes to, and, where not all weights
    learn, `adapter.safetensors` with those that did. With `tokenizers`, what a model folder holds beside
    the decoder, each checkpoint that is kept for good becomes one, too.

    Returns:
        The whole decoder, on the first rank; None on the others.

    Raises:
        ShardError: the shards were made with another vocabulary than the model's, or lack a source.
    """
    reader = ShardReader(config.shards)
    require_vocabulary(config.shards, reader.manifest.vocabulary, vocabulary)
    require_shardable(config.trainable, config.parallel.tensor_parallel)
    weights = mixture(config, reader)
    record = measure_balance(weights, reader).to_json()

    def told(step: int, metrics: Mapping[str, float]) -> None:
        if not metrics and is_first_rank():
            write_json(run / BALANCE_NAME, record)
        progress(step, metrics)

    change = partial(apply_adapters, config=config.trainable, vocabulary=vocabulary)
    shape = replace(start.config, dropout=config.dropout)
    merge = as_they_are
    if not config.trainable.is_whole:
        merge = partial(_merged, start=start, change=change)
    lesson = TrainJob(
        config,
        reader,
        lambda step: weights,
        run_fingerprint(config, reader, weights_fingerprint(start)),
        change,
        ExportConfig(tokenizers=tokenizers, merge=merge) if tokenizers is not None else None,
    )
    decoder = train_decoder(
        shape,
        lambda made: chain(
            start.state_dict().items(), initial_adapter_weights(made, start, config.seed)
        ),
        lesson,
        run,
        told,
    )
    if decoder is None or config.trainable.is_whole:
        return decoder
    save_adapter(run, decoder, config.trainable)
    return merge_adapters(decoder).eval()


def _merged(tensors: Tensors, *, start: Decoder, change: ModelTransform) -> Tensors:
    """The tensors of a plain decoder: what learned, and what stayed; it is held whole."""
    with torch.device("meta"):
        decoder = Decoder(start.config)
        change(decoder)
    learned = {name: tensor.read() for name, tensor in tensors.items()}
    decoder.load_state_dict({**start.state_dict(), **learned}, assign=True)
    return {
        name: LazyTensor.from_tensor(tensor)
        for name, tensor in merge_adapters(decoder).state_dict().items()
    }


def mixture(config: FinetuneConfig, reader: ShardReader) -> Mapping[str, float]:
    """The share of each source, once the config's `balance` is done.

    Raises:
        ShardError: the shards lack a source.
    """
    told = config.source_weights
    return equalize_pairings(told, reader) if config.balance == "pairings" else told


def balance(config: FinetuneConfig) -> ModalityBalance:
    """What a config's mixture comes to in its shards.

    Raises:
        ShardError: the shards cannot be read, or lack a source.
    """
    reader = ShardReader(config.shards)
    return measure_balance(mixture(config, reader), reader)


def weights_fingerprint(decoder: Decoder) -> str:
    """Twelve hex digits of a decoder's weights."""
    tensors = decoder.state_dict().values()
    return fingerprint(
        tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors
    )
