"""`calumma pretrain`: stage one, then stage two."""

from __future__ import annotations

import argparse

from calumma.cli.verb import Subparsers, add_config_arguments, new_verb, resolved, telling

_EXAMPLES = """\
  calumma pretrain run.toml --out out/run --dry-run                 the resolved config, and a plan
  calumma pretrain run.toml --out out/run                           start, or go on
  calumma pretrain run.toml --out out/run --optimizer.peak-rate 3e-4 --model.num-layers 8"""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = new_verb(
        subparsers,
        "pretrain",
        "CONFIG --out DIR [--dry-run] [--a.b VALUE ...]",
        "Pre-train a decoder on shards, stage one and then stage two.\n"
        "Goes on from the newest checkpoint in DIR; ends with a model folder, DIR/model.",
        _EXAMPLES,
    )
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train, or go on, and write the model folder beside the run's checkpoints."""
    from calumma.checkpoints.model_folder import Rest, open_model_folder
    from calumma.cli.dry_run import decoder_plan
    from calumma.runtime import is_first_rank
    from calumma.tokens.image import ImageTokenizer
    from calumma.tokens.text import TextTokenizer
    from calumma.train.config import PretrainConfig
    from calumma.train.exports import Exports
    from calumma.train.pretrain import pretrain

    config = resolved(PretrainConfig, args, decoder_plan)
    if config is None:
        return
    text, image = TextTokenizer.load(config.tokenizers), ImageTokenizer.load(config.tokenizers)
    with telling(args.out, config, "pre-training", config.steps) as progress:
        pretrain(config, args.out, progress, Exports(rest=Rest(text, image, image.draws)))
    if is_first_rank():
        made = open_model_folder(args.out / "model")
        print(f"{args.out}/model: a decoder of {made.num_parameters:,} parameters")
