"""`calumma train-image-tokenizer`: the VQ-GAN."""

import argparse
from pathlib import Path

from calumma.cli.command import Subparsers, add_command, add_config_arguments, load_run_config, training_progress

_EXAMPLES = """\
  calumma train-image-tokenizer vq.toml --out out/vq --dry-run
  calumma train-image-tokenizer vq.toml --out out/vq --training.steps 2000
  calumma train-image-tokenizer vq.toml --out out/vq        the same again: resumes"""


def add_train_image_tokenizer_command(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "train-image-tokenizer",
        "CONFIG --out DIR [--dry-run] [--a.b VALUE ...]",
        "Train the image tokenizer (VQ-GAN) on the images of documents.\n"
        "CONFIG has `documents` and a [training] table; any field can be overridden.\n"
        "On several GPUs: torchrun --nproc-per-node 8 -m calumma train-image-tokenizer ...",
        _EXAMPLES,
    )
    add_config_arguments(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    """Train, or resume; under torchrun only rank 0 reports."""
    from calumma.cli.dry_run import image_tokenizer_plan_lines
    from calumma.cli.run_shards import require_readable
    from calumma.documents.readers import read_documents
    from calumma.runtime import is_first_rank
    from calumma.train.config_image_tokenizer import ImageTokenizerRunConfig
    from calumma.train.image_tokenizer_trainer import train_image_tokenizer

    def check(config: ImageTokenizerRunConfig, out: Path) -> None:
        require_readable(config.documents)

    config = load_run_config(ImageTokenizerRunConfig, args, image_tokenizer_plan_lines, check=check)
    if config is None:
        return
    documents = read_documents(config.documents)
    with training_progress(args.out, config, "image tokenizer", config.steps) as callbacks:
        tokenizer = train_image_tokenizer(config, documents, args.out, callbacks)
    if is_first_rank():
        print(f"{args.out}: image tokenizer of {tokenizer.config.num_codes} codes")
