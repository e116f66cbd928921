"""The command `calumma finetune`: supervised fine-tuning (SFT), or preference tuning (DPO)."""

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
    """Add the command."""
    parser = add_command(
        subparsers,
        "finetune",
        "CONFIG --out DIR [--dry-run] [--a.b VALUE ...]",
        "Fine-tune a model on conversations (SFT) or on pairs of answers (DPO).\n"
        "A CONFIG with a [dpo] table selects DPO; in SFT the loss is on the answers only.\n"
        "Resumes from the newest checkpoint in DIR; writes a model folder, DIR/model.",
        _EXAMPLES,
    )
    add_config_arguments(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from calumma.toml_config import read_toml

    # The former name of the table is included so that the loader names the new one.
    tables = {"dpo", "preference"}
    options = {option[2:].partition(".")[0] for option in args.overrides}
    if tables & (read_toml(args.config).keys() | options):
        _run_dpo(args)
    else:
        _run_sft(args)


def _run_sft(args: argparse.Namespace) -> None:
    from calumma.checkpoints.model_folder import load_model
    from calumma.cli.dry_run import finetuning_plan_lines
    from calumma.train.config_finetune import FinetuneConfig
    from calumma.train.finetuning import finetune, modality_balance

    config = load_run_config(FinetuneConfig, args, finetuning_plan_lines)
    if config is None:
        return
    start = load_model(config.model)
    if warning := modality_balance(config).warning:
        logging.getLogger(__name__).warning(warning)
    with training_progress(args.out, config, "fine-tuning", config.steps) as progress:
        vocabulary, tokenizers = start.tokenizers.text.vocabulary, start.tokenizers
        decoder = finetune(
            config, start.decoder, vocabulary, args.out, progress, tokenizers=tokenizers
        )
    _save_model(args.out, start, decoder, f"fine-tuned from {config.model}")


def _run_dpo(args: argparse.Namespace) -> None:
    from calumma.checkpoints.model_folder import load_model
    from calumma.train.config_dpo import DPOTrainConfig
    from calumma.train.dpo import train_dpo

    config = load_run_config(DPOTrainConfig, args)
    if config is None:
        return
    start = load_model(config.model)
    with training_progress(args.out, config, "DPO", config.steps) as progress:
        decoder = train_dpo(config, start, args.out, progress)
    _save_model(args.out, start, decoder, f"tuned by DPO from {config.model}")


def _save_model(out: Path, start: ModelComponents, decoder: Decoder | None, note: str) -> None:
    """Write the model folder, on the rank that has the decoder."""
    from calumma.checkpoints.model_folder import save_model

    if decoder is not None:
        save_model(out / "model", replace(start, decoder=decoder))
        print(f"{out}/model: {note}")
