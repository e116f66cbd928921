"""`calumma convert`: convert a model between file layouts."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import Subparsers, add_command, add_revision_argument
from calumma.errors import ConfigError

if TYPE_CHECKING:
    from calumma.checkpoints.lazy_tensor import LazyModel

_DESCRIPTION = """\
Convert a model to and from other projects' layouts.

SRC is a Hugging Face folder (config.json) or a release in Meta's layout (params.json).
Only --merge and --quantization round; one or two tensors are in memory at a time."""

_EXAMPLES = """\
  calumma convert chameleon-release out/model --to calumma    from Meta's layout
  calumma convert out/model out/release --to meta --shards 4
  calumma convert out/model out/qwen3 --to qwen3              for inference engines
  calumma convert chameleon-7b tokenizers --to tokenizers     for shards to fine-tune it on"""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_convert_command(subparsers: Subparsers) -> None:
    """Add the command."""
    usage = "SRC DST --to calumma|meta|qwen3|gguf|lumina|tokenizers"
    parser = add_command(subparsers, "convert", usage, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("model", type=Path, metavar="SRC", help="a folder or user/name on the Hub; --revision R")
    add_revision_argument(parser)
    parser.add_argument("out", type=Path, metavar="DST", help="a folder that does not exist")
    parser.add_argument(
        "--to", choices=("calumma", "meta", "qwen3", "gguf", "lumina", "tokenizers"), required=True,
        help="calumma: for transformers; qwen3, gguf: with qk_norm = \"rms\"",
    )  # fmt: skip
    parser.add_argument(
        "--shards", type=int, metavar="N",
        help="of Meta's layout (default: one per group of QK-norms)",
    )  # fmt: skip
    parser.add_argument("--merge", type=Path, metavar="DIR", help="merge an adapter of `finetune` or PEFT")
    parser.add_argument("--quantization", choices=("int4",), help="write int4: a quarter of the size of bfloat16")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a safetensors file (default: 5GB)")
    parser.add_argument(
        "--tokenizers", type=Path, metavar="DIR",
        help="a release's tokenizers (default: those in SRC)",
    )  # fmt: skip
    parser.add_argument(
        "--target-size", type=int, choices=(512, 768, 1024), metavar="N",
        help="of Lumina-mGPT, in its name: 512, 768, 1024",
    )  # fmt: skip
    parser.set_defaults(run=_run, no_graceful_stop=True)


def _run(args: argparse.Namespace) -> None:
    """Convert and print a summary.

    Raises:
        CalummaError: SRC is incomplete, DST exists, the layout cannot represent the model, or the
            adapter belongs to another model.
    """
    from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
    from calumma.checkpoints.peft_folder import merge_adapter, read_adapter
    from calumma.cli.progress import ProgressBar

    if args.shards is not None and args.shards < 1:
        raise ConfigError(f"--shards {args.shards}; expected at least 1.")
    max_shard_bytes = size_in_bytes(args.max_shard_size)
    target = ConversionTarget(
        layout=args.to, num_shards=args.shards, max_shard_bytes=max_shard_bytes, is_int4=args.quantization is not None
    )
    model = open_model(args.model, args.tokenizers, args.target_size)
    if args.merge is not None:
        model.require_float(args.model)
        model = merge_adapter(model, read_adapter(args.merge, model.decoder_config))
    num_bytes = model.num_vq_bytes if args.to == "tokenizers" else model.num_bytes
    with ProgressBar(f"convert {args.model}", num_bytes // 10**6, "MB") as bar:
        written = 0

        def on_write(size: int) -> None:
            nonlocal written
            written += size
            bar.advance(written // 10**6 - bar.done)

        convert_model(model, args.model, args.out, target, on_write)
    note = "" if model.has_image_decoder else "; without an image decoder"
    print(f"{args.out}: {_summary(model, args.to)}{note}")


def _summary(model: "LazyModel", layout: str) -> str:
    if layout != "tokenizers":
        return f"{model.num_parameters:,} parameters, from {model.layout} to {layout}"
    vocabulary = model.text_tokenizer.vocabulary
    return (
        f"tokenizers, from {model.layout}: {vocabulary.num_text} text tokens and "
        f"{vocabulary.num_codes} image codes; fingerprint {vocabulary.fingerprint}"
    )


def size_in_bytes(text: str) -> int:
    """Return the number of bytes of a size such as 5GB or 800MB.

    Raises:
        ConfigError: it is not a size.
    """
    found = re.fullmatch(r"(\d+)\s*([KMG]?B|)", text.strip(), re.IGNORECASE)
    size = int(found[1]) * _UNITS[found[2].upper()] if found else 0
    if size < 1:
        raise ConfigError(f"--max-shard-size {text}; expected a number with a unit, such as 5GB or 800MB.")
    return size
