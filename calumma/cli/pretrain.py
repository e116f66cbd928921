"""`calumma pretrain`: stage one, then stage two."""

from __future__ import annotations

import argparse

from calumma.cli.verb import Subparsers, add_config_arguments, new_verb
from calumma.settings import config_tree, load_config, show_config

_EXAMPLES = """\
  calumma pretrain run.toml --out out/run --dry-run                 the resolved config
  calumma pretrain run.toml --out out/run                           start, or go on
  calumma pretrain run.toml --out out/run --optimizer.peak-rate 3e-4 --model.num-layers 8"""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = new_verb(
        subparsers,
        "pretrain",
        "Pre-train a decoder on shards, stage one and then stage two.\n"
        "Goes on from the newest checkpoint in DIR; ends with a model folder, DIR/model.",
        _EXAMPLES,
    )
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train, or go on, and write the model folder."""
    from calumma.checkpoints.model_folder import ModelParts, save_model
    from calumma.cli.progress import Bar
    from calumma.files import make_folder, write_json
    from calumma.tokens.image import ImageTokenizer
    from calumma.tokens.text import TextTokenizer
    from calumma.train.config import PretrainConfig
    from calumma.train.pretrain import pretrain

    config = load_config(PretrainConfig, args.config, args.changes)
    if args.dry_run:
        print(show_config(config))
        return
    make_folder(args.out)
    write_json(args.out / "config.json", config_tree(config))
    text, image = TextTokenizer.load(config.tokenizers), ImageTokenizer.load(config.tokenizers)
    with Bar("pre-training", config.steps, "steps") as bar:
        decoder = pretrain(config, args.out, bar.step)
    save_model(args.out / "model", ModelParts(decoder, text, image))
    print(f"{args.out}/model: a decoder of {decoder.num_parameters:,} parameters")
