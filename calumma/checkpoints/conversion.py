"""From one layout of a model to another, tensor by tensor: a model need not fit into memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calumma.checkpoints.hf_qwen3 import require_qwen3
from calumma.checkpoints.hf_weights import MOST_BYTES
from calumma.checkpoints.lazy_tensor import LazyModel
from calumma.checkpoints.meta.release import find_meta, open_meta, require_meta, write_meta
from calumma.checkpoints.model_folder import CONFIG_NAME, open_model_folder, write_model
from calumma.checkpoints.safetensors_io import Tell, silent, write_tensors
from calumma.errors import CheckpointError, OutputError
from calumma.files import make_folder, replacing, write_json, write_text
from calumma.tokens.image import CONFIG_FILE, WEIGHTS_FILE
from calumma.tokens.text import FILE_NAME as TOKENIZER_NAME

Layout = Literal["calumma", "meta", "qwen3", "tokenizers"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a model is converted to."""

    layout: Layout
    """`tokenizers` leaves the decoder out: a folder as the verbs that train tokenizers write it."""

    num_shards: int | None = None
    """Of Meta's layout; None is one for each group of head norms."""

    most_bytes: int = MOST_BYTES
    """Of one safetensors file, in the other layouts."""


def open_model(path: Path, tokenizers: Path | None = None) -> LazyModel:
    """Look at a model in any layout that calumma reads, without its weights.

    Args:
        path: a model folder, a release of Meta's, or the folder of one model in it.
        tokenizers: the folder of a release's tokenizers, where they lie elsewhere.

    Raises:
        CheckpointError: it is none, or not whole.
        VocabularyError: its parts do not belong together.
    """
    if (path / CONFIG_NAME).is_file():
        return open_model_folder(path)
    meta = find_meta(path)
    if meta is not None:
        return open_meta(meta, tokenizers)
    raise CheckpointError(
        f"{path} holds neither config.json nor params.json nor models/*/params.json; expected a "
        "model folder in Hugging Face's layout, or a release in Meta's. Name the folder itself."
    )


def convert(model: LazyModel, source: Path, out: Path, target: Target, tell: Tell = silent) -> None:
    """Write a model in another layout; the folder is whole or not there.

    Args:
        model: as `open_model` found it.
        source: where, for messages.
        out: a folder that does not exist yet, or is empty.
        target: the layout expected.
        tell: is called with the bytes just written.

    Raises:
        CheckpointError: that layout cannot hold this model, or a file of the source is broken.
        OutputError: the folder has other things in it, or cannot be written.
    """
    write = _writer(model, source, target, tell)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            f"{out} holds other things; expected a folder that is not there yet, or is empty. Choose "
            "another, or delete it."
        )
    make_folder(out.parent)
    with _whole(out) as temporary:
        write(temporary)


def _writer(model: LazyModel, source: Path, target: Target, tell: Tell) -> Callable[[Path], None]:
    if target.layout == "meta":
        require_meta(model, target.num_shards or model.decoder_config.qk_norm_groups, source)
        return lambda folder: write_meta(folder, model, target.num_shards, tell)
    if target.num_shards is not None:
        raise CheckpointError(
            f"--shards {target.num_shards} with --to {target.layout}; expected it with --to meta "
            "only. How large files of the other layouts are, --max-shard-size says."
        )
    if target.layout == "tokenizers":
        return lambda folder: write_tokenizers(folder, model, tell)
    if target.layout == "qwen3":
        require_qwen3(model, source)
    return lambda folder: write_model(folder, model, most_bytes=target.most_bytes, tell=tell)


def write_tokenizers(folder: Path, model: LazyModel, tell: Tell = silent) -> None:
    """Write a model's tokenizers, holding a tensor at a time.

    The bytes follow from those of the model. Where it has no VQ decoder, none is written: what is
    left encodes the same codes, and is refused where pictures are to be made of codes.

    Args:
        folder: gets `tokenizer.json` and the two files of an image tokenizer.
        model: whose they are; its decoder is not read.
        tell: is called with the bytes of each tensor written.
    """
    write_text(folder / TOKENIZER_NAME, model.tokenizer_json)
    # By name: models keep them in an order of their own.
    write_tensors(folder / WEIGHTS_FILE, dict(sorted(model.vq_tensors.items())), tell)
    write_json(folder / CONFIG_FILE, model.vq_config.to_json())


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end, and vanishes after an error."""
    with replacing(folder) as temporary:
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
