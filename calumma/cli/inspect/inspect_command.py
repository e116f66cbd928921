"""`calumma inspect`: what a file or folder is, its counts, and whether it is whole."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from calumma.cli.command import Subparsers, add_command
from calumma.errors import ConfigError
from calumma.text_format import pluralize

if TYPE_CHECKING:
    from calumma.documents.paths import RemotePath

_EXAMPLES = """\
  calumma inspect docs.parquet --page docs.html   documents: how many, of which sources; 20 drawn
  calumma inspect out/demo/shards     shards: sequences, ids, sources, whether all is there
  calumma inspect shards --page rows.html --tokenizers tokenizers   20 rows of them decoded
  calumma inspect run.toml --page rows.html   a config's mixture, and 20 of its rows decoded
  calumma inspect out/demo/model      a model: its shape and its vocabulary"""


_OF_DOCUMENTS = (".jsonl", ".gz", ".zst", ".parquet", ".tar", ".html")
"""Endings that anybody's files of documents have, which may lie in any folder."""

_OURS = ("metrics.jsonl", "events.jsonl", "pieces.jsonl", "quarantine.jsonl", "report.html")
"""Files with such endings that a folder of ours holds, and that are no documents."""


def add_inspect_command(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_command(
        subparsers,
        "inspect",
        "PATH [--page FILE [--tokenizers DIR]]",
        "Say what a file or folder is, its counts, and whether it is whole.\n"
        "Of the pictures in documents every file is read and its header opened, none is decoded.",
        _EXAMPLES,
    )
    parser.add_argument(
        "path", metavar="PATH", help="any that calumma writes or reads; of documents an address too"
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="20 documents, or rows of shards or of a config's mixture, as HTML",
    )
    parser.add_argument(
        "--tokenizers", type=Path, metavar="DIR", help="what shards were made with, for --page"
    )
    parser.set_defaults(run=_run, no_graceful_stop=True)


def _run(args: argparse.Namespace) -> None:
    """Look and tell.

    Raises:
        CalummaError: the thing is broken, or nothing that calumma knows.
    """
    from calumma.documents.paths import RemotePath, parse_path

    path = parse_path(args.path)
    if isinstance(path, RemotePath):
        print("\n".join(_documents(path, args.page)))
        return
    if path.suffix == ".toml":
        from calumma.cli.inspect.mixture_summary import mixture_lines

        print("\n".join(mixture_lines(path, args.page)))
        return
    if (path / "manifest.json").is_file():
        lines = _shards(path, args.page, args.tokenizers)
    elif known := _without_page(path):
        lines = known
        if args.page is not None:
            raise ConfigError(
                f"--page {args.page}, and {path} holds no documents; expected documents, shards or "
                "a config of training. Leave --page out."
            )
    else:
        _require_no_piece(path)
        lines = _documents(path, args.page)
    print("\n".join(lines))


def _require_no_piece(path: Path) -> None:
    """Refuse a file of a folder that is told of as a whole, such as a model's weights."""
    folder = path.parent
    if path.suffix in _OF_DOCUMENTS and path.name not in _OURS:
        return
    if path.is_file() and ((folder / "manifest.json").is_file() or _without_page(folder)):
        raise ConfigError(
            f"{path}: a file of the folder {folder}; expected the folder, which is told of as a "
            f"whole. Name it: `calumma inspect {folder}`."
        )


def _without_page(path: Path) -> list[str]:
    """What is told of a folder of which no page is drawn; nothing where it is none."""
    tokenizes = any((path / f"{n}.json").is_file() for n in ("tokenizer", "image_tokenizer"))
    if (path / "checkpoints").is_dir():
        return _run(path) + (_tokenizers(path)[1:] if tokenizes else [])
    if ((path / "config.json").is_file() and tokenizes) or _is_release(path):
        return _model(path)
    if tokenizes:
        return _tokenizers(path)
    if (path / "state.json").is_file():
        return _checkpoint(path)
    if (path / "steps").is_dir() and (path / "runs").is_dir():
        return _demo(path)
    return []


def _is_release(path: Path) -> bool:
    return (path / "params.json").is_file() or any(path.glob("models/*/params.json"))


def _model(path: Path) -> list[str]:
    from calumma.checkpoints.conversion import open_model

    # Headers alone are read; they tell whether every file and tensor is there, and how large.
    model = open_model(path)
    shape, image = model.decoder_config, model.vq_config
    norms = {"layer": "", "rms": " and rms", "none": " alone"}[shape.qk_norm]
    dtype = str(model.dtype).removeprefix("torch.")
    return [
        f"{path}: {model.layout}, whole",
        f"decoder: {model.num_parameters:,} parameters, {shape.num_layers} layers of "
        f"{shape.model_dim}, {shape.num_heads} heads, norms {shape.norm_order}{norms}, "
        f"rows of at most {shape.max_seq_len} ids",
        _vocabulary(
            model.text_tokenizer.vocabulary.num_text, model.text_tokenizer.vocabulary.num_codes
        ),
        f"image tokenizer: {image.resolution} pixels to a side, {image.codes_per_image} codes a "
        f"picture, {'draws' if model.has_image_decoder else 'no decoder: codes cannot become pictures'}",
        f"weights: {dtype}, {model.num_bytes:,} bytes, the decoder's in "
        f"{pluralize(model.num_weight_files, 'file')}",
    ]


def _vocabulary(num_text: int, num_codes: int) -> str:
    return f"vocabulary: {num_text} text ids, {num_codes} image codes"


def _shards(path: Path, page: Path | None, tokenizers: Path | None) -> list[str]:
    from calumma.shards.account import shard_lines
    from calumma.shards.reader import ShardReader

    if page is not None and tokenizers is None:
        raise ConfigError(
            f"--page {page} of the shards {path} without --tokenizers; expected the folder of those "
            "that they were made with, to decode them. Name it."
        )
    reader = ShardReader(path)
    reader.verify()
    vocabulary = reader.manifest.vocabulary
    drawn = []
    if page is not None and tokenizers is not None:
        from calumma.cli.inspect.mixture_summary import shard_page

        drawn = [shard_page(reader, tokenizers, page)]
    return [
        f"{path}: shards, whole",
        *shard_lines(reader.manifest),
        _vocabulary(vocabulary.num_text, vocabulary.num_codes)
        + f", fingerprint {vocabulary.fingerprint}",
        *drawn,
    ]


def _run(path: Path) -> list[str]:
    from calumma.files import read_json

    saved = sorted((path / "checkpoints").glob("step-*/state.json"))
    steps = [str(read_json(state)["step"]) for state in saved]
    metrics = path / "metrics.jsonl"
    told = len(metrics.read_text(encoding="utf-8").splitlines()) if metrics.is_file() else 0
    configs = [*sorted((path / "models").glob("*/config.json")), path / "model" / "config.json"]
    models = [str(config.parent.relative_to(path)) for config in configs if config.is_file()]
    return [
        f"{path}: a training run",
        f"checkpoints at steps {', '.join(steps) or 'none yet'}; metrics of {told} steps",
        *([f"model folders: {', '.join(models)}"] if models else []),
        "the command that began it goes on from the newest",
    ]


def _checkpoint(path: Path) -> list[str]:
    from calumma.checkpoints.training_checkpoint import read_complete_record
    from calumma.files import read_json

    record = read_complete_record(path)
    if record is None:
        step = read_json(path / "state.json")["step"]
        return [f"{path}: a checkpoint of step {step}, NOT whole", "a run passes it over"]
    files = record["files"]
    return [
        f"{path}: a checkpoint of step {record['step']}, whole",
        f"{pluralize(len(files), 'file')}, {sum(files.values()):,} bytes; of a "
        f"run with the fingerprint {record['fingerprint']}",
    ]


def _tokenizers(path: Path) -> list[str]:
    from calumma.tokens.image import ImageTokenizer
    from calumma.tokens.text import TextTokenizer

    lines = [f"{path}: tokenizers"]
    if (path / "tokenizer.json").is_file():
        vocabulary = TextTokenizer.load(path).vocabulary
        lines.append(_vocabulary(vocabulary.num_text, vocabulary.num_codes))
    if (path / "image_tokenizer.json").is_file():
        image = ImageTokenizer.load(path)
        config = image.config
        lines.append(
            f"image tokenizer: {config.num_codes} codes, {config.resolution} pixels to a side, "
            f"{config.codes_per_image} codes a picture"
            + ("" if image.has_decoder else ", no decoder: codes cannot become pictures")
        )
    return lines


def _demo(path: Path) -> list[str]:
    done = sorted(note.stem for note in (path / "steps").glob("*.json"))
    return [
        f"{path}: a demo's folder",
        f"steps done: {', '.join(done) or 'none'}",
        *(f"inspect {path / name}" for name in ("shards", "tokenizers", "model")),
    ]


def _documents(path: Path | RemotePath, page: Path | None) -> list[str]:
    from calumma.cli.inspect.documents_page import Survey, documents_page
    from calumma.documents.readers import read_documents
    from calumma.files import write_text

    found = Survey()
    found.take(read_documents([path]))
    lines = [f"{path}: documents", *found.lines()]
    if page is not None:
        write_text(page, documents_page(found, f"{path}: documents"))
        lines.append(f"{pluralize(len(found.drawn), 'document')} drawn in {page}")
    return lines
