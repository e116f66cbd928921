"""The command `calumma inspect`: what a file or folder is, its counts, whether it is complete."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import Subparsers, add_command, add_revision_argument
from calumma.errors import ConfigError
from calumma.hub import DOCUMENT_SUFFIXES
from calumma.text_format import pluralize

if TYPE_CHECKING:
    from calumma.documents.paths import RemotePath

_EXAMPLES = """\
  calumma inspect docs.parquet --html docs.html   counts by source, and a page of 20 documents
  calumma inspect out/demo/shards     sequences and tokens by source; verifies every hash
  calumma inspect shards --html seqs.html --tokenizers tokenizers   20 packed sequences, decoded
  calumma inspect run.toml --html seqs.html   the data mixture of a config, and 20 sequences of it
  calumma inspect out/demo/model      the shape of a model and its vocabulary"""


_NO_DOCUMENTS = ("metrics.jsonl", "events.jsonl", "shards.jsonl", "quarantine.jsonl", "report.html")
"""Files with such suffixes that calumma writes and that are no documents."""


def add_inspect_command(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "inspect",
        "PATH [--html FILE [--tokenizers DIR]]",
        "Show what a file or folder is, its counts, and whether it is complete.\n"
        "Of images in documents only the headers are decoded.",
        _EXAMPLES,
    )
    shown = "a file or folder of any kind, a URL of documents, or user/name on the Hub; --revision R"
    parser.add_argument("model", metavar="PATH", help=shown)
    add_revision_argument(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of 20 documents or packed sequences")
    parser.add_argument("--tokenizers", type=Path, metavar="DIR", help="the tokenizers of shards, for --html")
    parser.set_defaults(run=_run, no_graceful_stop=True)


def _run(args: argparse.Namespace) -> None:
    from calumma.documents.paths import RemotePath, parse_path
    from calumma.hub import find_model_folder

    path = parse_path(args.model)
    if isinstance(path, Path):
        path = find_model_folder(path)
    if isinstance(path, RemotePath):
        lines = _documents(path, args.html)
    elif path.suffix == ".toml":
        from calumma.cli.inspect.mixture_summary import config_lines

        lines = config_lines(path, args.html)
    elif (path / "manifest.json").is_file():
        lines = _shards(path, args.html, args.tokenizers)
    elif lines := _folder_lines(path):
        if args.html is not None:
            raise ConfigError(
                f"--html {args.html} of {path}, which has no documents; expected documents, shards "
                "or a training config. Omit --html."
            )
    else:
        _require_no_member(path)
        lines = _documents(path, args.html)
    print("\n".join(lines))


def _require_no_member(path: Path) -> None:
    """Refuse a single file of a folder that is inspected as one unit, such as a model."""
    folder = path.parent
    if path.suffix in DOCUMENT_SUFFIXES and path.name not in _NO_DOCUMENTS:
        return
    if path.is_file() and ((folder / "manifest.json").is_file() or _folder_lines(folder)):
        raise ConfigError(
            f"{path}: a file of the folder {folder}; expected the folder. Run `calumma inspect {folder}`."
        )


def _folder_lines(path: Path) -> list[str]:
    """Describe a run, model, tokenizer, adapter, checkpoint or demo folder; [] if it is none of them."""
    has_tokenizers = any((path / f"{n}.json").is_file() for n in ("tokenizer", "image_tokenizer"))
    if (path / "checkpoints").is_dir():
        return _training_run(path) + (_tokenizers(path)[1:] if has_tokenizers else [])
    if ((path / "config.json").is_file() and has_tokenizers) or _is_release(path):
        return _model(path)
    if has_tokenizers:
        return _tokenizers(path)
    if (path / "adapter_config.json").is_file():
        return _adapter(path)
    # A folder of `save_to_disk` has a state.json, too.
    if (path / "state.json").is_file() and not (path / "dataset_info.json").is_file():
        return _checkpoint(path)
    if (path / "steps").is_dir() and (path / "runs").is_dir():
        return _demo(path)
    return []


def _is_release(path: Path) -> bool:
    return (path / "params.json").is_file() or any(path.glob("models/*/params.json"))


def _model(path: Path) -> list[str]:
    from calumma.checkpoints.conversion import open_model

    # Reads the headers only; they contain the names and sizes of all tensors.
    model = open_model(path)
    shape, image = model.decoder_config, model.vq_config
    sizes = model.text_tokenizer.vocabulary.image_sizes
    qk_norm = {"layer": "QK LayerNorm", "rms": "QK RMSNorm", "none": "no QK-norm"}[shape.qk_norm]
    return [
        f"{path}: {model.layout}, complete",
        f"decoder: {model.num_parameters:,} parameters, {shape.num_layers} layers of width {shape.model_dim}, "
        f"{shape.num_heads} heads, {shape.norm_order}-norm, {qk_norm}, max_seq_len {shape.max_seq_len}",
        _vocabulary(model.text_tokenizer.vocabulary.num_text, model.text_tokenizer.vocabulary.num_codes),
        f"image tokenizer: {image.resolution} pixels a side, {image.codes_per_image} codes per "
        f"image, {'with' if model.has_image_decoder else 'without'} decoder",
        *([f"images: {sizes.describe(image.downsampling)}"] if sizes else []),
        f"weights: {model.dtype_names}, {model.num_bytes:,} bytes, "
        f"the decoder in {pluralize(model.num_weight_files, 'file')}",
    ]


def _vocabulary(num_text: int, num_codes: int) -> str:
    return f"vocabulary: {num_text} text tokens, {num_codes} image codes"


def _shards(path: Path, page: Path | None, tokenizers: Path | None) -> list[str]:
    from calumma.shards.manifest import format_manifest
    from calumma.shards.reader import ShardReader

    if page is not None and tokenizers is None:
        raise ConfigError(
            f"--html {page} of the shards {path} without --tokenizers; expected the tokenizers "
            "that they were built with. Add --tokenizers DIR."
        )
    reader = ShardReader(path)
    reader.verify()
    vocabulary = reader.manifest.vocabulary
    page_line = []
    if page is not None and tokenizers is not None:
        from calumma.cli.inspect.mixture_summary import write_shards_page

        page_line = [write_shards_page(reader, tokenizers, page)]
    return [
        f"{path}: shards, complete",
        *format_manifest(reader.manifest),
        _vocabulary(vocabulary.num_text, vocabulary.num_codes) + f", fingerprint {vocabulary.fingerprint}",
        *page_line,
    ]


def _training_run(path: Path) -> list[str]:
    from calumma.files import read_json

    saved = sorted((path / "checkpoints").glob("step-*/state.json"))
    steps = [str(read_json(state)["step"]) for state in saved]
    metrics = path / "metrics.jsonl"
    num_steps = len(metrics.read_text(encoding="utf-8").splitlines()) if metrics.is_file() else 0
    configs = [*sorted((path / "models").glob("*/config.json")), path / "model" / "config.json"]
    models = [str(config.parent.relative_to(path)) for config in configs if config.is_file()]
    return [
        f"{path}: a training run",
        f"checkpoints at steps {', '.join(steps) or 'none yet'}; metrics of {num_steps} steps",
        *([f"model folders: {', '.join(models)}"] if models else []),
        *(["adapter folder: adapter"] if (path / "adapter" / "adapter_config.json").is_file() else []),
        "run the same command to resume from the newest",
    ]


def _checkpoint(path: Path) -> list[str]:
    from calumma.checkpoints.training_checkpoint import read_complete_record
    from calumma.files import read_json

    record = read_complete_record(path)
    if record is None:
        step = read_json(path / "state.json")["step"]
        return [f"{path}: a checkpoint of step {step}, INCOMPLETE", "a run ignores it"]
    files = record["files"]
    return [
        f"{path}: a checkpoint of step {record['step']}, complete",
        f"{pluralize(len(files), 'file')}, {sum(files.values()):,} bytes",
    ]


def _tokenizers(path: Path) -> list[str]:
    from calumma.tokens.image import ImageTokenizer
    from calumma.tokens.text import TextTokenizer

    lines, sizes = [f"{path}: tokenizers"], None
    if (path / "tokenizer.json").is_file():
        vocabulary = TextTokenizer.load(path).vocabulary
        sizes = vocabulary.image_sizes
        lines.append(_vocabulary(vocabulary.num_text, vocabulary.num_codes))
    if (path / "image_tokenizer.json").is_file():
        image = ImageTokenizer.load(path)
        config = image.config
        lines.append(
            f"image tokenizer: {config.num_codes} codes, {config.resolution} pixels a side, "
            f"{config.codes_per_image} codes per image, "
            + ("with decoder" if image.has_decoder else "without decoder")
        )
        lines += [f"images: {sizes.describe(config.downsampling)}"] if sizes else []
    return lines


def _adapter(path: Path) -> list[str]:
    from calumma.checkpoints.peft_folder import adapter_summary

    return [f"{path}: an adapter, complete", *adapter_summary(path)]


def _demo(path: Path) -> list[str]:
    done = sorted(note.stem for note in (path / "steps").glob("*.json"))
    return [
        f"{path}: a demo folder",
        f"steps done: {', '.join(done) or 'none'}",
        *(f"inspect {path / name}" for name in ("shards", "tokenizers", "model")),
    ]


def _documents(path: "Path | RemotePath", page: Path | None) -> list[str]:
    from calumma.cli.inspect.inspect_pages import DocumentStats, documents_page
    from calumma.documents.readers import read_documents
    from calumma.files import write_text

    stats = DocumentStats()
    stats.update(read_documents([path]))
    lines = [f"{path}: documents", *stats.lines()]
    if page is not None:
        write_text(page, documents_page(stats, f"{path}: documents"))
        lines.append(f"{pluralize(len(stats.samples), 'document')} shown in {page}")
    return lines
