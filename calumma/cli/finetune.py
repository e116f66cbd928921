"""`calumma finetune`: supervised fine-tuning on turns, or preference tuning on pairs of answers."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import (
    Subparsers,
    add_command,
    add_config_arguments,
    load_run_config,
    training_progress,
)

if TYPE_CHECKING:
    from calumma.checkpoints.model_folder import ModelComponents
    from calumma.model.decoder import Decoder

_EXAMPLES = """\
  calumma finetune turns.toml --out out/tuned --dry-run
  calumma finetune turns.toml --out out/tuned --steps 400 --dropout 0.05
  calumma finetune turns.toml --out out/tuned --trainable.blocks lora --trainable.embeddings none"""


def add_finetune_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_command(
        subparsers,
        "finetune",
        "CONFIG --out DIR [--dry-run] [--a.b VALUE ...]",
        "Fine-tune a model on turns; only answers count in the loss.\n"
        "A CONFIG with a [preference] table learns from pairs of answers instead (DPO).\n"
        "Goes on from the newest checkpoint in DIR; ends with a model folder, DIR/model.",
        _EXAMPLES,
    )
    add_config_arguments(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    """Train, or go on, and write the model folder."""
    from calumma.toml_config import read_toml

    told = "preference" in read_toml(args.config)
    if told or any(change.startswith("--preference.") for change in args.overrides):
        _prefer(args)
    else:
        _finetune(args)


def _finetune(args: argparse.Namespace) -> None:
    from calumma.checkpoints.model_folder import load_model
    from calumma.cli.dry_run import tuning_plan
    from calumma.train.config_finetune import FinetuneConfig
    from calumma.train.finetune import balance, finetune

    config = load_run_config(FinetuneConfig, args, tuning_plan)
    if config is None:
        return
    start = load_model(config.model)
    if warning := balance(config).warning:
        logging.getLogger(__name__).warning(warning)
    with training_progress(args.out, config, "fine-tuning", config.steps) as progress:
        vocabulary, tokenizers = start.tokenizers.text.vocabulary, start.tokenizers
        decoder = finetune(
            config, start.decoder, vocabulary, args.out, progress, tokenizers=tokenizers
        )
    _keep(args.out, start, decoder, f"fine-tuned from {config.model}")


def _prefer(args: argparse.Namespace) -> None:
    from calumma.checkpoints.model_folder import load_model
    from calumma.train.config_dpo import DPOTrainConfig
    from calumma.train.dpo import train_dpo

    config = load_run_config(DPOTrainConfig, args)
    if config is None:
        return
    start = load_model(config.model)
    with training_progress(args.out, config, "preference tuning", config.steps) as progress:
        decoder = train_dpo(config, start, args.out, progress)
    _keep(args.out, start, decoder, f"prefers as its pairs do, tuned from {config.model}")


def _keep(out: Path, start: ModelComponents, decoder: Decoder | None, said: str) -> None:
    """Write the model folder, on the rank that has the decoder."""
    from calumma.checkpoints.model_folder import save_model

    if decoder is not None:
        save_model(out / "model", replace(start, decoder=decoder))
        print(f"{out}/model: {said}")
