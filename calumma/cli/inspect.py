"""`calumma inspect`: what a file or folder is, its counts, and whether it is whole."""

from __future__ import annotations

import argparse
from pathlib import Path

from calumma.cli.verb import Subparsers, new_verb

_EXAMPLES = """\
  calumma inspect docs.parquet        documents: how many, of which sources
  calumma inspect out/demo/shards     shards: sequences, ids, sources, whether all is there
  calumma inspect run.toml --page rows.html   a config's mixture, and 20 of its rows decoded
  calumma inspect out/demo/model      a model: its shape and its vocabulary"""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = new_verb(
        subparsers,
        "inspect",
        "PATH [--page FILE]",
        "Say what a file or folder is, its counts, and whether it is whole.",
        _EXAMPLES,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="any that calumma writes or reads")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="of a config: 20 rows of its mixture, as HTML"
    )
    parser.set_defaults(run=run, stops_at_once=True)


def run(args: argparse.Namespace) -> None:
    """Look and tell.

    Raises:
        CalummaError: the thing is broken, or nothing that calumma knows.
    """
    path: Path = args.path
    if path.suffix == ".toml":
        from calumma.cli.mixture import mixture_lines

        print("\n".join(mixture_lines(path, args.page)))
        return
    tokenizes = any((path / f"{n}.json").is_file() for n in ("tokenizer", "image_tokenizer"))
    if (path / "checkpoints").is_dir():
        lines = _run(path) + (_tokenizers(path)[1:] if tokenizes else [])
    elif ((path / "config.json").is_file() and tokenizes) or _is_release(path):
        lines = _model(path)
    elif (path / "manifest.json").is_file():
        lines = _shards(path)
    elif tokenizes:
        lines = _tokenizers(path)
    elif (path / "steps").is_dir() and (path / "runs").is_dir():
        lines = _demo(path)
    else:
        lines = _documents(path)
    print("\n".join(lines))


def _is_release(path: Path) -> bool:
    return (path / "params.json").is_file() or any(path.glob("models/*/params.json"))


def _model(path: Path) -> list[str]:
    from calumma.checkpoints.convert import open_model

    # Headers alone are read; they tell whether every file and tensor is there, and how large.
    model = open_model(path)
    shape, image = model.shape, model.image_shape
    norms = {"layer": "", "rms": " and rms", "none": " alone"}[shape.qk_norm]
    dtype = str(model.dtype).removeprefix("torch.")
    return [
        f"{path}: {model.layout}, whole",
        f"decoder: {model.num_parameters:,} parameters, {shape.num_layers} layers of "
        f"{shape.model_dim}, {shape.num_heads} heads, norms {shape.norm_order}{norms}, "
        f"rows of at most {shape.max_tokens} ids",
        _vocabulary(model.text.vocabulary.num_text, model.text.vocabulary.num_codes),
        f"image tokenizer: {image.resolution} pixels to a side, {image.codes_per_image} codes a "
        f"picture, {'draws' if model.draws else 'no decoder: codes cannot become pictures'}",
        f"weights: {dtype}, {model.num_bytes:,} bytes, the decoder's in {model.num_files} "
        f"file{'s' if model.num_files > 1 else ''}",
    ]


def _vocabulary(num_text: int, num_codes: int) -> str:
    return f"vocabulary: {num_text} text ids, {num_codes} image codes"


def _shards(path: Path) -> list[str]:
    from calumma.shards.account import shard_lines
    from calumma.shards.reader import ShardReader

    reader = ShardReader(path)
    reader.require_whole()
    vocabulary = reader.manifest.vocabulary
    return [
        f"{path}: shards, whole",
        *shard_lines(reader.manifest),
        _vocabulary(vocabulary.num_text, vocabulary.num_codes)
        + f", fingerprint {vocabulary.fingerprint}",
    ]


def _run(path: Path) -> list[str]:
    from calumma.files import read_json

    saved = sorted((path / "checkpoints").glob("step-*/state.json"))
    steps = [str(read_json(state)["step"]) for state in saved]
    metrics = path / "metrics.jsonl"
    told = len(metrics.read_text(encoding="utf-8").splitlines()) if metrics.is_file() else 0
    return [
        f"{path}: a training run",
        f"checkpoints at steps {', '.join(steps) or 'none yet'}; metrics of {told} steps",
        "the command that began it goes on from the newest",
    ]


def _tokenizers(path: Path) -> list[str]:
    from calumma.tokens.image import ImageTokenizer
    from calumma.tokens.text import TextTokenizer

    lines = [f"{path}: tokenizers"]
    if (path / "tokenizer.json").is_file():
        vocabulary = TextTokenizer.load(path).vocabulary
        lines.append(_vocabulary(vocabulary.num_text, vocabulary.num_codes))
    if (path / "image_tokenizer.json").is_file():
        config = ImageTokenizer.load(path).config
        lines.append(
            f"image tokenizer: {config.num_codes} codes, {config.resolution} pixels to a side, "
            f"{config.codes_per_image} codes a picture"
        )
    return lines


def _demo(path: Path) -> list[str]:
    done = sorted(note.stem for note in (path / "steps").glob("*.json"))
    return [
        f"{path}: a demo's folder",
        f"steps done: {', '.join(done) or 'none'}",
        *(f"inspect {path / name}" for name in ("shards", "tokenizers", "model")),
    ]


def _documents(path: Path) -> list[str]:
    from collections import Counter

    from calumma.documents.readers import read_documents

    sources: Counter[str] = Counter()
    images = letters = conversations = 0
    for document in read_documents([path]):
        sources[document.source or "(no source)"] += 1
        images += len(document.images)
        letters += len(document.text)
        conversations += bool(document.messages)
    return [
        f"{path}: documents",
        f"{sources.total()} documents ({conversations} conversations), {images} images, "
        f"{letters} letters of text",
        f"sources: {', '.join(f'{name} {count}' for name, count in sources.most_common(12))}",
    ]
