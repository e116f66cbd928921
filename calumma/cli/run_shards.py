"""Shards of a run's own documents, and the checks of a run's data before it starts."""

from pathlib import Path
from typing import TYPE_CHECKING

from calumma.errors import ConfigError

if TYPE_CHECKING:
    from calumma.train.config import PretrainConfig, TrainConfig
    from calumma.train.config_finetune import FinetuneConfig


def build_run_shards(config: "TrainConfig", tokenizers: Path) -> None:
    """Build the shards of a config's documents as `calumma build-shards` does, or resume.

    Args:
        config: of the run; without `documents` nothing is built.
        tokenizers: the folder of both tokenizers.

    Raises:
        CalummaError: a document cannot be read, or several ranks would have to wait for the build.
        Interrupted: a signal asked to stop.
    """
    from calumma.cli.build_shards import build_on_this_machine
    from calumma.runtime import torchrun_rank
    from calumma.shards.format import MANIFEST_NAME

    if not config.documents:
        return
    launch = torchrun_rank()
    if launch is not None and launch.world_size > 1:
        if not (config.shards / MANIFEST_NAME).is_file():
            raise ConfigError(
                f"{config.shards} holds no shards of the documents yet; expected them with more "
                "than one rank. Start the same command once without torchrun, or use `calumma "
                "build-shards`."
            )
        return
    build_on_this_machine(config.documents, tokenizers, config.shards)


def require_readable(documents: list[str]) -> None:
    """Read the first document; raise `DocumentError` if there is none."""
    from calumma.documents.readers import read_documents

    next(iter(read_documents(documents)), None)


def check_pretraining(config: "PretrainConfig") -> None:
    """Raise what would stop the start of a pre-training run, as far as its inputs exist."""
    from dataclasses import asdict

    from calumma.batches.loader import PackedLoader
    from calumma.model.config import DecoderConfig
    from calumma.shards.format import MANIFEST_NAME
    from calumma.shards.reader import ShardReader

    require_readable(config.documents)
    vocabulary_size = 1
    if (config.shards / MANIFEST_NAME).is_file():
        reader = ShardReader(config.shards)
        vocabulary_size = reader.manifest.vocabulary.size
        resolved = config.with_default_weights(reader.manifest)
        for weights in (resolved.stage_one.weights, resolved.stage_two_weights):
            PackedLoader(reader, config.data).set_mixture(weights)
    DecoderConfig(vocabulary_size=vocabulary_size, **asdict(config.model))


def check_finetuning(config: "FinetuneConfig") -> None:
    """Raise what would stop the start of a fine-tuning run, as far as its inputs exist."""
    from calumma.batches.loader import PackedLoader
    from calumma.shards.format import MANIFEST_NAME
    from calumma.shards.reader import ShardReader
    from calumma.train.finetuning import mixture

    require_readable(config.documents)
    if (config.shards / MANIFEST_NAME).is_file():
        reader = ShardReader(config.shards)
        PackedLoader(reader, config.data).set_mixture(mixture(config, reader))
