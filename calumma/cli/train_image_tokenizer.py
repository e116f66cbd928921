"""`calumma train-image-tokenizer`: the VQ-GAN."""

from __future__ import annotations

import argparse

from calumma.cli.verb import Subparsers, add_config_arguments, new_verb
from calumma.settings import config_tree, load_config, show_config

_EXAMPLES = """\
  calumma train-image-tokenizer vq.toml --out out/vq --dry-run
  calumma train-image-tokenizer vq.toml --out out/vq --training.steps 2000
  calumma train-image-tokenizer vq.toml --out out/vq        the same again: goes on"""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = new_verb(
        subparsers,
        "train-image-tokenizer",
        "Train the image tokenizer (VQ-GAN) on the pictures of documents.\n"
        "CONFIG has `documents` and a [training] table; any field can be changed by its name.",
        _EXAMPLES,
    )
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train, or go on."""
    from calumma.cli.progress import Bar
    from calumma.documents.readers import read_documents
    from calumma.files import make_folder, write_json
    from calumma.train.config_image_tokenizer import ImageTokenizerRun
    from calumma.train.image_learner import train_image_tokenizer

    config = load_config(ImageTokenizerRun, args.config, args.changes)
    if args.dry_run:
        print(show_config(config))
        return
    make_folder(args.out)
    write_json(args.out / "config.json", config_tree(config))
    with Bar("image tokenizer", config.training.steps, "steps") as bar:
        tokenizer = train_image_tokenizer(
            config.training,
            read_documents(config.documents),
            args.out,
            save_every=config.save_every,
            progress=bar.step,
        )
    print(f"{args.out}: image tokenizer of {tokenizer.config.num_codes} codes")
