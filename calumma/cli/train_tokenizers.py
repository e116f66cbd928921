"""`calumma train-text-tokenizer` and `calumma train-image-tokenizer`: a BPE, and a VQ-GAN."""

import argparse
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from calumma.cli.command import Subparsers, add_command, add_config_arguments, load_run_config, training_progress

_TEXT_EXAMPLES = """\
  calumma train-text-tokenizer docs/*.parquet --out tokenizers --num-text 4096 --num-codes 1024
  calumma train-text-tokenizer docs.jsonl --out tokenizers --num-text 512 --image-tokenizer vq"""

_IMAGE_EXAMPLES = """\
  calumma train-image-tokenizer vq.toml --out out/vq --dry-run
  calumma train-image-tokenizer vq.toml --out out/vq --training.steps 2000
  calumma train-image-tokenizer vq.toml --out out/vq        the same again: resumes"""


def add_train_text_tokenizer_command(subparsers: Subparsers) -> None:
    """Add `calumma train-text-tokenizer`."""
    parser = add_command(
        subparsers,
        "train-text-tokenizer",
        "DOCS... --out DIR --num-codes N | --image-tokenizer DIR",
        "Train a byte-level BPE whose vocabulary also holds the image codes.\n"
        "Writes DIR/tokenizer.json and, with --image-tokenizer, a copy of that tokenizer.",
        _TEXT_EXAMPLES,
    )
    parser.add_argument("documents", nargs="+", metavar="DOCS", help="files, folders or globs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where tokenizer.json is written")
    parser.add_argument(
        "--num-text",
        type=int,
        default=4096,
        metavar="N",
        help="text tokens, the 256 bytes included; fewer if the text gives fewer (4096)",
    )
    codes = parser.add_mutually_exclusive_group(required=True)
    codes.add_argument("--num-codes", type=int, metavar="N", help="number of image codes")
    codes.add_argument(
        "--image-tokenizer",
        type=Path,
        metavar="DIR",
        help="take the number of codes of this image tokenizer, and copy it into --out",
    )
    parser.add_argument(
        "--image-sizes", metavar="SIZES", help="any, or WIDTHxHEIGHT,...: sizes that images keep (default: squares)"
    )
    parser.set_defaults(run=_run_text_tokenizer, no_graceful_stop=True)


def _run_text_tokenizer(args: argparse.Namespace) -> None:
    from calumma.documents.readers import read_documents
    from calumma.errors import ConfigError
    from calumma.files import make_folder
    from calumma.tokens.image import ImageTokenizer
    from calumma.tokens.text import TextTokenizer
    from calumma.vocabulary import ImageSizeTokens, Vocabulary

    image = ImageTokenizer.load(args.image_tokenizer) if args.image_tokenizer else None
    num_codes = args.num_codes if image is None else image.config.num_codes
    sizes = None
    if args.image_sizes is not None:
        if image is None:
            raise ConfigError(
                f"--image-sizes {args.image_sizes} without --image-tokenizer; expected it, as its cells decide which "
                "sizes are possible. Add it."
            )
        sizes = ImageSizeTokens.parse(
            args.image_sizes,
            Vocabulary(num_codes=num_codes, num_text=0).placeholder + 1,
            cell=image.config.downsampling,
            max_cells=image.config.codes_per_image,
        )
    texts = (document.text for document in read_documents(args.documents))
    tokenizer = TextTokenizer.train(
        texts, num_text=args.num_text, num_codes=num_codes, image_sizes=sizes, allow_fewer=True
    )
    vocabulary = tokenizer.vocabulary
    if vocabulary.num_text < args.num_text:
        logging.getLogger(__name__).warning(
            f"the texts give {vocabulary.num_text} text tokens, not {args.num_text}; more text would give more."
        )
    # Written last, so that an error leaves no empty folder.
    make_folder(args.out)
    tokenizer.save(args.out)
    if image is not None and args.image_tokenizer.resolve() != args.out.resolve():
        image.save(args.out)
    print(
        f"{args.out}/tokenizer.json: {vocabulary.size} tokens, {vocabulary.num_text} of text and "
        f"{vocabulary.num_codes} image codes; fingerprint {vocabulary.fingerprint}"
    )


def add_train_image_tokenizer_command(subparsers: Subparsers) -> None:
    """Add `calumma train-image-tokenizer`."""
    parser = add_command(
        subparsers,
        "train-image-tokenizer",
        "CONFIG --out DIR [--skip-invalid] [--dry-run] [--a.b VALUE ...]",
        "Train the image tokenizer (VQ-GAN) on the images of documents.\n"
        "CONFIG has `documents` and a [training] table; any field can be overridden.\n"
        "On several GPUs: torchrun --nproc-per-node 8 -m calumma train-image-tokenizer ...",
        _IMAGE_EXAMPLES,
    )
    parser.add_argument(
        "--skip-invalid",
        action="store_true",
        help="drop documents with unreadable images; quarantine.jsonl lists them",
    )
    add_config_arguments(parser)
    parser.set_defaults(run=_run_image_tokenizer)


def _run_image_tokenizer(args: argparse.Namespace) -> None:
    """Train, or resume; under torchrun only rank 0 reports."""
    from calumma.cli.dry_run import image_tokenizer_plan_lines
    from calumma.cli.run_shards import require_readable
    from calumma.documents.document import Document
    from calumma.documents.error_policy import UNREADABLE, DroppedDocument
    from calumma.documents.readers import read_documents
    from calumma.files import write_json_lines
    from calumma.runtime import is_first_rank
    from calumma.shards.format import QUARANTINE_NAME
    from calumma.train.config_image_tokenizer import ImageTokenizerRunConfig
    from calumma.train.image_dataset import drop_unreadable
    from calumma.train.image_tokenizer_trainer import train_image_tokenizer

    def check(config: ImageTokenizerRunConfig, out: Path) -> None:
        require_readable(config.documents)

    config = load_run_config(
        ImageTokenizerRunConfig, args, image_tokenizer_plan_lines, check=check, check_is_quick=True
    )
    if config is None:
        return
    dropped: list[DroppedDocument] = []
    documents: Iterable[Document] = read_documents(config.documents)
    if args.skip_invalid:
        documents = drop_unreadable(
            read_documents(config.documents, "drop"), config.training.network.resolution, dropped
        )
    with training_progress(args.out, config, "image tokenizer", config.steps) as callbacks:
        tokenizer = train_image_tokenizer(config, documents, args.out, callbacks)
    if is_first_rank():
        print(f"{args.out}: image tokenizer of {tokenizer.config.num_codes} codes")
        if dropped:
            write_json_lines(args.out / QUARANTINE_NAME, map(asdict, dropped))
            print(f"dropped {len(dropped)} ({UNREADABLE}), listed in {args.out / QUARANTINE_NAME}")
