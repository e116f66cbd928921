"""Start of a run from the weights and the optimizer state of another run (`init_from`)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.batches.loader import LoaderState
from calumma.checkpoints.training_checkpoint import RunIdentity, SavedCheckpoint, differing_fields, newest_checkpoint
from calumma.errors import CheckpointError, ConfigError
from calumma.files import fingerprint
from calumma.tokens.text import TEXT_TOKENIZER_NAME, TextTokenizer
from calumma.train.optimizer import restore_decoder

if TYPE_CHECKING:
    from calumma.train.config import TrainConfig
    from calumma.train.decoder_trainer import DecoderTrainer

_LOGGER = logging.getLogger(__name__)

_KINDS = {"dpo.beta": "DPO", "trainable.blocks": "fine-tuning", "model.model_dim": "pre-training"}
"""Kind of a run by a field that its identity has."""

_FREE_FIELDS = {"model.dropout", "model.max_seq_len"}
"""Fields of the model that no weight depends on."""


def open_initial_run(
    config: "TrainConfig", run: Path, identity: RunIdentity, vocabulary_size: int | None
) -> tuple[RunIdentity, SavedCheckpoint | None]:
    """Open the newest checkpoint of the run that another run starts from.

    Args:
        config: of the new run.
        run: folder of the new run.
        identity: of the new run.
        vocabulary_size: of its shards; None if they are not built yet.

    Returns:
        The identity with a fingerprint of the checkpoint, and the checkpoint; without `init_from`
        the identity as it is, and None.

    Raises:
        ConfigError: it is the run itself, or a run of another kind.
        CheckpointError: it has no checkpoint, or its weights are not those of the new run's model.
    """
    folder = config.init_from
    if folder is None:
        return identity, None
    if folder.resolve() == run.resolve():
        raise ConfigError(
            f"init_from={folder} is the folder of the run itself; expected another run. Choose another --out."
        )
    saved = newest_checkpoint(folder)
    if saved is None:
        raise CheckpointError(
            f"init_from={folder} has no checkpoints; expected the folder of a training run. Fix the path."
        )
    _require_same_kind(folder, saved.record["identity"], identity)
    _require_same_weights(folder, saved, config, identity, vocabulary_size)
    return {**identity, "init_from": f"step {saved.step}, {fingerprint(repr(saved.record))}"}, saved


def _kind(identity: RunIdentity) -> str:
    return next((kind for name, kind in _KINDS.items() if name in identity), "the image tokenizer")


def _require_same_kind(folder: Path, saved: RunIdentity, identity: RunIdentity) -> None:
    found, expected = _kind(saved), _kind(identity)
    if found != expected:
        fix = f"Give --model {folder}/model" if expected == "fine-tuning" else "Choose such a run"
        raise ConfigError(f"init_from={folder} is a run of {found}; expected one of {expected}. {fix}.")


def _require_same_weights(
    folder: Path,
    checkpoint: SavedCheckpoint,
    config: "TrainConfig",
    identity: RunIdentity,
    vocabulary_size: int | None,
) -> None:
    """Refuse a run whose weights or optimizer state have other names, shapes or meanings."""
    saved, now = dict(checkpoint.record["identity"]), dict(identity)
    names = [
        name
        for name in sorted({*saved, *now} - _FREE_FIELDS)
        if name in ("model", "optimizer.name") or name.startswith(("model.", "trainable."))
    ]
    embedding = checkpoint.load_meta()["model"].get("embedding.weight")
    if embedding is not None and vocabulary_size is not None:
        saved["vocabulary_size"], now["vocabulary_size"] = len(embedding), vocabulary_size
        names.append("vocabulary_size")
    tokenizers = getattr(config, "tokenizers", None)
    folders = [folder / "model", tokenizers] if tokenizers else []
    if folders and all((each / TEXT_TOKENIZER_NAME).is_file() for each in folders):
        saved["tokenizers"], now["tokenizers"] = map(_text_fingerprint, folders)
        names.append("tokenizers")
    then, here = differing_fields(saved, now, names)
    if then:
        raise CheckpointError(
            f"init_from={folder} was trained with {then}; this run has {here}. Give the values of that run."
        )


def _text_fingerprint(folder: Path) -> str:
    tokenizer = TextTokenizer.load(folder)
    return fingerprint(tokenizer.tokenizer.to_str(pretty=False) + repr(tokenizer.vocabulary.image_sizes))


def restore_initial_state(trainer: "DecoderTrainer", saved: SavedCheckpoint, identity: RunIdentity) -> None:
    """Load weights and optimizer state into a new run, which begins with its step 0.

    With the same shards and the same `[data]` fields, the data continue where they ended.
    """
    state: Mapping[str, Any] = restore_decoder(saved, trainer.decoder, trainer.optimizers)
    data = [name for name in identity if name == "shards" or name.startswith("data.")]
    continues = not any(differing_fields(saved.record["identity"], identity, data))
    if continues:
        trainer.loader.restore(LoaderState(**state["loader"]))
    if trainer.layout.dist.is_main:
        where = "continue where they ended there" if continues else "are others, read from their start"
        _LOGGER.info("starting from step %d of %s; the data %s", saved.step, saved.folder.parents[1], where)
