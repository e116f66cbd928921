"""`calumma push`: upload a model folder to the Hugging Face Hub."""

import argparse
from pathlib import Path

from calumma.cli.command import Subparsers, add_command

_DESCRIPTION = """\
Upload a model folder to the Hugging Face Hub, with its model card.

Only weights, JSON, texts and templates are uploaded, in one commit; files of an older model in the
repository are removed. Without README.md the folder gets a card as of `calumma evaluate --card`.
An account logs in with `hf auth login` or by HF_TOKEN."""

_EXAMPLES = """\
  calumma push out/demo/model anna/still-lifes --private
  calumma push out/tuned/adapter anna/still-lifes-adapter --branch v2"""


def add_push_command(subparsers: Subparsers) -> None:
    """Add the command."""
    usage = "FOLDER USER/NAME [--private] [--branch B]"
    parser = add_command(subparsers, "push", usage, _DESCRIPTION, _EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="a model, adapter or image tokenizer folder")
    add("name", metavar="USER/NAME", help="the repository, which is created if it does not exist")
    add("--private", action="store_true", help="make a new repository private")
    add("--branch", metavar="B", help="write this branch, created if it does not exist (default: main)")
    add("--message", metavar="TEXT", help="message of the commit")
    parser.set_defaults(run=_run, no_graceful_stop=True)


def _run(args: argparse.Namespace) -> None:
    """Check the folder, write its card if it has none, and upload it.

    Raises:
        CheckpointError: FOLDER is incomplete, or of another kind.
        ConfigError: USER/NAME is not such a name.
        OutputError: the Hub cannot be reached, or refuses.
    """
    from calumma.checkpoints.model_folder import open_model_folder
    from calumma.checkpoints.peft_folder import ADAPTER_CONFIG_FILE
    from calumma.evaluate.model_card import CARD_NAME, write_card
    from calumma.hub import push_folder, require_repository_name
    from calumma.tokens.image import IMAGE_TOKENIZER_CONFIG_NAME, ImageTokenizer

    require_repository_name(args.name)
    if (args.folder / IMAGE_TOKENIZER_CONFIG_NAME).is_file():
        ImageTokenizer.load(args.folder)
    elif not (args.folder / ADAPTER_CONFIG_FILE).is_file():
        open_model_folder(args.folder)
        if not (args.folder / CARD_NAME).is_file():
            print(f"model card: {write_card(args.folder, [], [], args.name)}")
    print(push_folder(args.folder, args.name, private=args.private, revision=args.branch, message=args.message))
