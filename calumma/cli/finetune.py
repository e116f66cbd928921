"""`calumma finetune`: supervised fine-tuning on turns."""

from __future__ import annotations

import argparse
from dataclasses import replace

from calumma.cli.verb import (
    Subparsers,
    add_config_arguments,
    new_verb,
    resolved,
    tell_warning,
    telling,
)

_EXAMPLES = """\
  calumma finetune turns.toml --out out/tuned --dry-run
  calumma finetune turns.toml --out out/tuned --steps 400 --dropout 0.05"""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = new_verb(
        subparsers,
        "finetune",
        "CONFIG --out DIR [--dry-run] [--a.b VALUE ...]",
        "Fine-tune a model on turns; only answers count in the loss.\n"
        "Goes on from the newest checkpoint in DIR; ends with a model folder, DIR/model.",
        _EXAMPLES,
    )
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train, or go on, and write the model folder."""
    from calumma.checkpoints.model_folder import load_model, save_model
    from calumma.train.config_finetune import FinetuneConfig
    from calumma.train.finetune import balance, finetune

    config = resolved(FinetuneConfig, args)
    if config is None:
        return
    start = load_model(config.model)
    tell_warning(balance(config).warning)
    with telling(args.out, config, "fine-tuning", config.steps) as progress:
        decoder = finetune(config, start.decoder, start.text.vocabulary, args.out, progress)
    if decoder is None:
        return  # a rank of several, but not the first
    save_model(args.out / "model", replace(start, decoder=decoder))
    print(f"{args.out}/model: fine-tuned from {config.model}")
