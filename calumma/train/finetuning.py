"""Supervised fine-tuning on conversations: only answers are in the loss mask."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from calumma.batches.modality_balance import ModalityBalance, equalize_pairings, measure_balance
from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.checkpoints.sampling_params import read_sampling_options
from calumma.files import fingerprint, write_json
from calumma.model.decoder import Decoder
from calumma.runtime import is_first_rank
from calumma.shards.manifest import require_vocabulary
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers
from calumma.train.adapters import (
    apply_adapters,
    frozen_weights,
    initial_adapter_weights,
    merge_adapters,
    require_trainable,
    save_adapter,
)
from calumma.train.config import run_identity
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.decoder_trainer import TrainJob, train_decoder
from calumma.train.downward_training import add_downward_head, initial_downward_head
from calumma.train.init_from import open_initial_run
from calumma.train.parallelize import ModelTransform, NamedTensors
from calumma.train.training_loop import TrainCallbacks
from calumma.vocabulary import Vocabulary

BALANCE_NAME = "balance.json"


def finetune(
    config: FinetuneConfig,
    start: Decoder,
    vocabulary: Vocabulary,
    run: Path,
    callbacks: TrainCallbacks | None = None,
    *,
    tokenizers: Tokenizers | None = None,
) -> Decoder | None:
    """Train from `start` on the conversations of the shards, or resume; torchrun ranks share it.

    The run's folder gets `balance.json`, the modality balance of the mixture, and, if not all
    weights are trained, `adapter/` with those that are, which PEFT loads too.

    With `tokenizers`, each checkpoint that is kept for good gets a model folder. Returns the full
    decoder on rank 0, None on the others.

    Raises:
        ShardError: the shards were built with another vocabulary, or lack a source.
    """
    reader = ShardReader(config.shards)
    require_vocabulary(config.shards, reader.manifest.vocabulary, vocabulary)
    require_trainable(config.trainable, start, config.parallel.tensor_parallel)
    weights = mixture(config, reader)
    balance = measure_balance(weights, reader).to_json()

    def write_balance(step: int) -> None:
        if is_first_rank():
            write_json(run / BALANCE_NAME, balance)

    def transform(decoder: Decoder) -> None:
        apply_adapters(decoder, config.trainable, vocabulary)
        add_downward_head(decoder, config)

    merge = None
    if not config.trainable.trains_all or config.downward_head == "head":
        merge = partial(_merged, start=start, transform=transform)
    hashes = {"shards": reader.manifest.fingerprint, "model": weights_fingerprint(start)}
    identity, initial = open_initial_run(config, run, run_identity(config, **hashes), vocabulary.size)
    job = TrainJob(
        config=config,
        reader=reader,
        shape=replace(start.config, dropout=config.dropout),
        mixture_at=lambda step: weights,
        initial_weights=lambda made: chain(
            tuned_weights(made, start, config.seed), initial_downward_head(config, start)
        ),
        identity=identity,
        initial_run=initial,
        transform=transform,
        tokenizers=tokenizers,
        merge=merge,
        sampling=read_sampling_options(config.model),
    )
    callbacks = (callbacks or TrainCallbacks()).with_start(write_balance)
    decoder = train_decoder(job, run, callbacks)
    if decoder is None or config.trainable.trains_all:
        return decoder
    save_adapter(run, decoder, config.model)
    return merge_adapters(decoder).eval()


def tuned_weights(decoder: Decoder, start: Decoder, seed: int) -> NamedTensors:
    """Return the initial weights of a fine-tuning: those of `start`, and initial adapters."""
    return chain(frozen_weights(decoder, start), initial_adapter_weights(decoder, start, seed))


def _merged(
    tensors: Mapping[str, LazyTensor], *, start: Decoder, transform: ModelTransform
) -> Mapping[str, LazyTensor]:
    """Merge the trained tensors of a checkpoint with the frozen ones; holds the full decoder."""
    with torch.device("meta"):
        decoder = Decoder(start.config)
        transform(decoder)
    trained = {name: tensor.read() for name, tensor in tensors.items()}
    decoder.load_state_dict({**dict(frozen_weights(decoder, start)), **trained}, assign=True)
    return {name: LazyTensor.from_tensor(tensor) for name, tensor in merge_adapters(decoder).state_dict().items()}


def mixture(config: FinetuneConfig, reader: ShardReader) -> Mapping[str, float]:
    """Return the weight of each source, after the config's `balance`.

    Raises:
        ShardError: the shards lack a source.
    """
    weights = config.source_weights or config.default_weights(reader.manifest)
    return equalize_pairings(weights, reader) if config.balance == "pairings" else weights


def modality_balance(config: FinetuneConfig) -> ModalityBalance:
    """Measure the modality balance of a config's mixture.

    Raises:
        ShardError: the shards cannot be read, or lack a source.
    """
    reader = ShardReader(config.shards)
    return measure_balance(mixture(config, reader), reader)


def weights_fingerprint(decoder: Decoder) -> str:
    """Return twelve hex digits of a decoder's weights."""
    tensors = decoder.state_dict().values()
    return fingerprint(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors)
