"""`calumma convert`: a model from one layout of files to another."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import Subparsers, add_command
from calumma.errors import ConfigError

if TYPE_CHECKING:
    from calumma.checkpoints.lazy_tensor import LazyModel

_DESCRIPTION = """\
Convert a model to and from other projects' layouts.

SRC is a folder of Hugging Face's kind (config.json) or a release in Meta's layout (params.json).
Nothing is rounded, and no more than a tensor or two at a time is held in memory.
--to tokenizers writes the model's text and image tokenizers alone, as build-shards takes them."""

_EXAMPLES = """\
  calumma convert chameleon-release out/model --to calumma    from Meta's layout
  calumma convert out/model out/release --to meta --shards 4
  calumma convert out/model out/qwen3 --to qwen3              for engines that know Qwen3
  calumma convert chameleon-7b tokenizers --to tokenizers     for shards that it is tuned on"""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_convert_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    usage = "SRC DST --to calumma|meta|qwen3|tokenizers"
    parser = add_command(subparsers, "convert", usage, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("source", type=Path, metavar="SRC", help="the model's folder")
    parser.add_argument("out", type=Path, metavar="DST", help="a folder that is not there yet")
    parser.add_argument(
        "--to", choices=("calumma", "meta", "qwen3", "tokenizers"), required=True,
        help="calumma: as transformers loads it; qwen3: needs qk_norm = \"rms\"",
    )  # fmt: skip
    parser.add_argument(
        "--shards", type=int, metavar="N",
        help="of Meta's layout (default: one a group of head norms)",
    )  # fmt: skip
    parser.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="of a safetensors file (default: 5GB)",
    )
    parser.add_argument(
        "--tokenizers", type=Path, metavar="DIR",
        help="where a release's tokenizers lie (default: beside its models)",
    )  # fmt: skip
    parser.set_defaults(run=_run, no_graceful_stop=True)


def _run(args: argparse.Namespace) -> None:
    """Convert, and tell what became of it.

    Raises:
        CalummaError: SRC is not whole, DST is in the way, or the layout cannot hold the model.
    """
    from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
    from calumma.cli.progress import ProgressBar

    if args.shards is not None and args.shards < 1:
        raise ConfigError(f"--shards {args.shards}; expected at least 1.")
    most_bytes = size_in_bytes(args.max_shard_size)
    target = ConversionTarget(layout=args.to, num_shards=args.shards, max_shard_bytes=most_bytes)
    model = open_model(args.source, args.tokenizers)
    num_bytes = model.num_vq_bytes if args.to == "tokenizers" else model.num_bytes
    with ProgressBar(f"convert {args.source}", num_bytes // 10**6, "MB") as bar:
        written = 0

        def tell(more: int) -> None:
            nonlocal written
            written += more
            bar.advance(written // 10**6 - bar.done)

        convert_model(model, args.source, args.out, target, tell)
    draws = (
        "" if model.has_image_decoder else "; the image tokenizer has no decoder: it cannot draw"
    )
    print(f"{args.out}: {_made(model, args.to)}{draws}")


def _made(model: LazyModel, layout: str) -> str:
    if layout != "tokenizers":
        return f"{model.num_parameters:,} parameters, from {model.layout} to {layout}"
    vocabulary = model.text_tokenizer.vocabulary
    return (
        f"tokenizers, from {model.layout}: {vocabulary.num_text} text ids and "
        f"{vocabulary.num_codes} image codes; fingerprint {vocabulary.fingerprint}"
    )


def size_in_bytes(text: str) -> int:
    """What a size such as 5GB or 800MB stands for.

    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"(\d+)\s*([KMG]?B|)", text.strip(), re.IGNORECASE)
    size = int(found[1]) * _UNITS[found[2].upper()] if found else 0
    if size < 1:
        raise ConfigError(
            f"--max-shard-size {text}; expected a number with a unit, such as 5GB or 800MB."
        )
    return size
