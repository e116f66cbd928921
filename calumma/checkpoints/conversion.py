"""Conversion of models between layouts, tensor by tensor: a model need not fit into memory."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calumma.checkpoints.gguf_file import GGUF_FILE, write_gguf
from calumma.checkpoints.hf_qwen3 import require_qwen3
from calumma.checkpoints.hf_weights import MAX_SHARD_BYTES
from calumma.checkpoints.lazy_tensor import LazyModel
from calumma.checkpoints.lumina_mgpt import is_lumina_mgpt, open_lumina_mgpt, require_lumina_layout, set_lumina_sizes
from calumma.checkpoints.meta.release import find_meta_model, open_meta_model, require_meta_layout, write_meta_model
from calumma.checkpoints.model_folder import HF_CONFIG_FILE, open_model_folder, write_model
from calumma.checkpoints.safetensors_io import WriteCallback, write_safetensors
from calumma.errors import CheckpointError, OutputError
from calumma.files import atomic_write, make_folder, read_json, write_json, write_text
from calumma.hub import find_model_folder
from calumma.model.quantization import int4_group_size
from calumma.tokens.image import IMAGE_TOKENIZER_CONFIG_NAME, IMAGE_TOKENIZER_WEIGHTS_NAME
from calumma.tokens.text import TEXT_TOKENIZER_NAME, write_image_sizes

ModelLayout = Literal["calumma", "lumina", "meta", "qwen3", "gguf", "tokenizers"]


@dataclass(frozen=True, kw_only=True)
class ConversionTarget:
    """The layout that a model is converted to."""

    layout: ModelLayout
    """`tokenizers` is the tokenizers alone, as the commands that train tokenizers write them."""

    num_shards: int | None = None
    """Number of shards in Meta's layout; None means one for each group of QK-norms."""

    is_int4: bool = False
    """Whether the matrices of the blocks are written as 4-bit integers."""

    max_shard_bytes: int = MAX_SHARD_BYTES
    """Maximum size of a safetensors file in the other layouts."""


def open_model(path: str | Path, tokenizers: Path | None = None, target_size: int | None = None) -> LazyModel:
    """Open a model in any supported layout without reading its weights.

    Args:
        path: a model folder, or its name; a release in Meta's layout, or the folder of one model in it.
        tokenizers: the folder of a release's tokenizers, if not in the release.
        target_size: sizes of images of a Lumina-mGPT folder, as in its name; another model with
            Chameleon's tokenizer gets them, to be tuned.

    Raises:
        CheckpointError: it is not a model, or incomplete.
        VocabularyError: decoder and tokenizers have different vocabularies.
    """
    path = find_model_folder(path)
    if (path / HF_CONFIG_FILE).is_file():
        config = read_json(path / HF_CONFIG_FILE)
        if is_lumina_mgpt(config):
            return open_lumina_mgpt(path, config, tokenizers, target_size)
        model = open_model_folder(path)
    elif (meta := find_meta_model(path)) is not None:
        model = open_meta_model(meta, tokenizers)
    else:
        raise CheckpointError(
            f"{path} holds neither config.json nor params.json nor models/*/params.json; expected a "
            "model folder in Hugging Face's layout, or a release in Meta's. Name the folder itself."
        )
    if target_size is not None:
        set_lumina_sizes(model, target_size)
    return model


def convert_model(
    model: LazyModel, source: Path, out: Path, target: ConversionTarget, on_write: WriteCallback | None = None
) -> None:
    """Write a model in another layout; the folder appears when it is complete.

    Args:
        model: from `open_model`.
        source: its path, for messages.
        out: a folder that does not exist or is empty.
        target: the layout to write.
        on_write: called with the number of bytes just written.

    Raises:
        CheckpointError: the layout cannot represent the model, or a file of the source is broken.
        OutputError: the folder is not empty or cannot be written.
    """
    write = _writer(model, source, target, on_write)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            f"{out} is not empty; expected a folder that does not exist or is empty. Choose another, or delete it."
        )
    make_folder(out.parent)
    with _temporary_folder(out) as temporary:
        write(temporary)


def _writer(
    model: LazyModel, source: Path, target: ConversionTarget, on_write: WriteCallback | None
) -> Callable[[Path], None]:
    if target.layout != "tokenizers":
        model.require_float(source)
    if target.is_int4:
        if target.layout not in ("calumma", "qwen3"):
            raise CheckpointError(
                f"--quantization int4 with --to {target.layout}; expected --to calumma or qwen3. Leave it out."
            )
        int4_group_size(model.decoder_config)
    if target.layout == "meta":
        require_meta_layout(model, target.num_shards or model.decoder_config.qk_norm_groups, source)
        return lambda folder: write_meta_model(folder, model, target.num_shards, on_write)
    if target.num_shards is not None:
        raise CheckpointError(
            f"--shards {target.num_shards} with --to {target.layout}; expected it with --to meta "
            "only. Use --max-shard-size for the other layouts."
        )
    if target.layout == "tokenizers":
        return lambda folder: write_model_tokenizers(folder, model, on_write)
    if target.layout in ("qwen3", "gguf"):
        require_qwen3(model, source)
    if target.layout == "gguf":
        return lambda folder: write_gguf(folder / GGUF_FILE, model, on_write)
    if target.layout == "lumina":
        require_lumina_layout(model, source)
    return lambda folder: write_model(
        folder,
        model,
        max_shard_bytes=target.max_shard_bytes,
        is_int4=target.is_int4,
        is_lumina=target.layout == "lumina",
        on_write=on_write,
    )


def write_model_tokenizers(folder: Path, model: LazyModel, on_write: WriteCallback | None = None) -> None:
    """Write a model's tokenizers, one tensor in memory at a time.

    If the model has no VQ decoder, none is written: the image tokenizer then encodes only.

    Args:
        folder: for `tokenizer.json` and the two files of an image tokenizer.
        model: source of the tokenizers.
        on_write: called with the number of bytes of each tensor written.
    """
    write_text(folder / TEXT_TOKENIZER_NAME, model.tokenizer_json)
    write_image_sizes(folder, model.text_tokenizer.vocabulary)
    # Sorted, since the order in a model depends on its layout.
    write_safetensors(folder / IMAGE_TOKENIZER_WEIGHTS_NAME, dict(sorted(model.vq_tensors.items())), on_write)
    write_json(folder / IMAGE_TOKENIZER_CONFIG_NAME, model.vq_config.to_json())


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, renamed to `folder` at the end and deleted after an error."""
    with atomic_write(folder) as temporary:
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
