"""Shards of a run's own documents, and the checks of a run's data before it starts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calumma.errors import ConfigError

if TYPE_CHECKING:
    from calumma.checkpoints.model_folder import ModelComponents
    from calumma.rl.config_grpo import GRPOTrainConfig
    from calumma.shards.reader import ShardReader
    from calumma.train.config import PretrainConfig, TrainConfig
    from calumma.train.config_dpo import DPOTrainConfig, PreferenceTrainConfig
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
                f"{config.shards} holds no shards of the documents yet; expected them with more than one rank. Start "
                "the same command once without torchrun, or use `calumma build-shards`."
            )
        return
    build_on_this_machine(config.documents, tokenizers, config.shards)


def require_readable(documents: list[str]) -> None:
    """Read the first document; raise `DocumentError` if there is none."""
    from calumma.documents.readers import read_documents

    next(iter(read_documents(documents)), None)


def check_pretraining(config: "PretrainConfig", out: Path) -> None:
    """Raise what would stop the start of a pre-training run, as far as its inputs exist."""
    from dataclasses import asdict

    from calumma.model.config import DecoderConfig
    from calumma.train.config import run_identity

    require_readable(config.documents)
    vocabulary_size, hashes = None, {}
    if (reader := _built_shards(config)) is not None:
        vocabulary_size = reader.manifest.vocabulary.size
        resolved = config.with_default_weights(reader.manifest)
        _check_mixtures(config, reader, resolved.stage_one.weights, resolved.stage_two_weights)
        hashes = {"shards": reader.manifest.fingerprint}
    DecoderConfig(vocabulary_size=vocabulary_size or 1, **asdict(config.model))
    _check_checkpoints(config, out, run_identity(config, **hashes), vocabulary_size)


def check_finetuning(config: "FinetuneConfig", out: Path) -> None:
    """Raise what would stop the start of a fine-tuning run, as far as its inputs exist."""
    from calumma.checkpoints.model_folder import load_model
    from calumma.hub import is_model_folder
    from calumma.shards.manifest import require_vocabulary
    from calumma.train.config import run_identity
    from calumma.train.finetuning import mixture, modality_balance, weights_fingerprint

    require_readable(config.documents)
    hashes = {}
    if (reader := _built_shards(config)) is not None:
        modality_balance(config)
        _check_mixtures(config, reader, mixture(config, reader))
        hashes = {"shards": reader.manifest.fingerprint}
    if not is_model_folder(config.model):
        return
    start = load_model(config.model)
    vocabulary = start.tokenizers.text.vocabulary
    if reader is not None:
        require_vocabulary(config.shards, reader.manifest.vocabulary, vocabulary)
    hashes["model"] = weights_fingerprint(start.decoder)
    _check_checkpoints(config, out, run_identity(config, **hashes), vocabulary.size)


def check_dpo(config: "DPOTrainConfig", out: Path) -> None:
    """Raise what would stop the start of preference tuning, as far as its inputs exist."""
    from calumma.documents.preferences import read_preferences
    from calumma.train.dpo import read_pairs

    if not _check_tuning(config, out, "pairs", lambda start: read_pairs(config, start.tokenizers).fingerprint):
        for path in config.dpo.pairs:
            for _ in read_preferences(path):
                pass


def check_grpo(config: "GRPOTrainConfig", out: Path) -> None:
    """Raise what would stop the start of tuning by rewards, as far as its inputs exist."""
    from calumma.rl.grpo import read_rollout_prompts
    from calumma.rl.rewards import load_reward

    for name in config.grpo.reward_funcs:
        load_reward(name)
    _check_tuning(config, out, "prompts", lambda start: read_rollout_prompts(config, start).fingerprint)


def _check_tuning(
    config: "PreferenceTrainConfig", out: Path, inputs: str, fingerprint: "Callable[[ModelComponents], str]"
) -> bool:
    """Return whether the model exists; raise if `out` holds another run than of it and its inputs."""
    from calumma.checkpoints.model_folder import load_model
    from calumma.checkpoints.training_checkpoint import newest_checkpoint
    from calumma.hub import is_model_folder
    from calumma.train.config import run_identity
    from calumma.train.finetuning import weights_fingerprint

    if not is_model_folder(config.model):
        return False
    start = load_model(config.model)
    hashes = {inputs: fingerprint(start), "model": weights_fingerprint(start.decoder)}
    newest_checkpoint(out, run_identity(config, **hashes))
    return True


def _built_shards(config: "TrainConfig") -> "ShardReader | None":
    from calumma.shards.format import MANIFEST_NAME
    from calumma.shards.reader import ShardReader

    return ShardReader(config.shards) if (config.shards / MANIFEST_NAME).is_file() else None


def _check_mixtures(config: "TrainConfig", reader: "ShardReader", *mixtures: Mapping[str, float]) -> None:
    from calumma.batches.loader import PackedLoader

    for weights in mixtures:
        PackedLoader(reader, config.data).set_mixture(weights)


def _check_checkpoints(
    config: "TrainConfig", out: Path, identity: Mapping[str, Any], vocabulary_size: int | None
) -> None:
    """Raise if the run cannot start from `init_from`, or if `out` holds another run."""
    from calumma.checkpoints.training_checkpoint import newest_checkpoint
    from calumma.train.init_from import open_initial_run

    identity, _ = open_initial_run(config, out, identity, vocabulary_size)
    if "shards" in identity:
        newest_checkpoint(out, identity)
