"""Folders in the layout of Meta's releases.

models/7b/consolidated.pth           all of the decoder, or
models/30b/consolidated.00.pth ...   its share in each shard of model parallelism
models/*/params.json                 the decoder's shape
models/*/consolidate_params.json     how many shards
models/*/calumma.json                what the two above have no place for (ours; may be lacking)
tokenizer/text_tokenizer.json        the text tokenizer; its placeholder is <reserved08707>
tokenizer/vqgan.yaml, vqgan.ckpt     the image tokenizer, named as in taming-transformers
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from calumma.checkpoints.hf_config import positive_int
from calumma.checkpoints.hf_qwen3 import open_image_tokenizer
from calumma.checkpoints.lazy_tensor import LazyModel, LazyTensor, require_tensors
from calumma.checkpoints.meta.sharding import (
    fuse_shapes,
    merge_shards,
    require_divisible,
    shard_shapes,
    shard_specs,
    split_for_shards,
    unfuse,
)
from calumma.checkpoints.meta.torch_pickle import open_torch_file, torch_file_writers
from calumma.checkpoints.meta.vqgan_files import VQGAN_CONFIG_FILE, open_vqgan, write_vqgan
from calumma.checkpoints.safetensors_io import WriteCallback
from calumma.errors import CheckpointError, ConfigError, TokenizerError
from calumma.files import read_json, write_json, write_text
from calumma.model.config import DecoderConfig
from calumma.tokens.image import CONFIG_FILE
from calumma.tokens.mistaken import refuse_model
from calumma.tokens.text import FILE_NAME as TOKENIZER_NAME
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.vocabulary import PLACEHOLDER_NAMES

PARAMS_FILE = "params.json"
SHARD_COUNT_FILE = "consolidate_params.json"
CALUMMA_PARAMS_FILE = "calumma.json"
META_TOKENIZER_FILE = "text_tokenizer.json"
_MODEL_KIND = "a Chameleon release's shard"

_SHARD = re.compile(r"consolidated\.(\d\d)\.pth")
_MULTIPLE = 256
_RELEASED = {7: "7b", 34: "30b"}
"""Billions of parameters -> what the release calls the model."""


def find_meta_model(path: Path) -> Path | None:
    """The folder of `params.json` that a path names: itself, or the only one in its `models`.

    Raises:
        CheckpointError: there are several.
    """
    if (path / PARAMS_FILE).is_file():
        return path
    found = sorted(path.glob(f"models/*/{PARAMS_FILE}"))
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds {len(found)} models ({', '.join(p.parent.name for p in found)}); expected "
            f"one. Name it: {found[0].parent}."
        )
    return found[0].parent if found else None


def open_meta_model(folder: Path, tokenizers: Path | None = None) -> LazyModel:
    """Look at a release, reading headers and head norms.

    Args:
        folder: the one with `params.json`.
        tokenizers: the folder of the tokenizers, where it is not the release's own.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
        VocabularyError: the tokenizers are not those of the decoder.
    """
    tokenizers = tokenizers or folder.parents[1] / "tokenizer"
    shards = [open_torch_file(path) for path in meta_shard_files(folder)]
    config = _read_params(folder, shards)
    require_divisible(config, len(shards), folder)
    parted = []
    for path, tensors in zip(meta_shard_files(folder), shards, strict=True):
        tensors = {n: t for n, t in tensors.items() if n != "rope.freqs"}
        shapes = shard_shapes(config, len(shards))
        wanted = dict(shapes)
        fuse_shapes(wanted, config, tensors)
        require_tensors(path, tensors, wanted, _MODEL_KIND)
        parted.append(unfuse(tensors, shapes, config))
    _require_one_dtype(parted, folder)
    decoder, groups = merge_shards(parted, config, folder)
    image_shape, image = _open_image_tokenizer(tokenizers)
    text_path = _text_file(tokenizers)
    text_file = rename_placeholder(text_path.read_text(encoding="utf-8"), to_release=False)
    number = f"{len(shards)} shards" if len(shards) > 1 else "one shard"
    model = LazyModel(
        layout=f"a release in Meta's layout ({number})",
        decoder_config=replace(config, qk_norm_groups=groups),
        decoder_tensors=decoder,
        vq_config=image_shape,
        vq_tensors=image,
        text_tokenizer=_text_tokenizer(text_file, text_path),
        tokenizer_json=text_file,
        num_weight_files=len(shards),
    )
    model.require_matching_vocabulary(folder)
    return model


def meta_shard_files(folder: Path) -> list[Path]:
    """The files of a release's decoder: `consolidated.pth`, or 00 and those that follow it.

    Raises:
        CheckpointError: there are none, or one of the row is missing.
    """
    if (folder / "consolidated.pth").is_file():
        files = [folder / "consolidated.pth"]
    else:
        files = sorted(p for p in folder.glob("consolidated.*.pth") if _SHARD.fullmatch(p.name))
    number = len(files)
    if (folder / SHARD_COUNT_FILE).is_file():
        told = {"model_parallel_size": number or 1} | read_json(folder / SHARD_COUNT_FILE)
        number = positive_int(told, "model_parallel_size", folder / SHARD_COUNT_FILE)
    names = {path.name for path in files}
    wanted = [f"consolidated.{shard:02d}.pth" for shard in range(max(1, number))]
    if names != set(wanted) and not (number == 1 and names == {"consolidated.pth"}):
        lacking = next((name for name in wanted if name not in names), None)
        state = f"{lacking} is not among them" if lacking else f"{max(names)} is one too many"
        raise CheckpointError(
            f"{folder} holds {len(files)} of {len(expected)} shards, and {state}; expected "
            "consolidated.pth, or consolidated.00.pth and its followers. Copy or download it again."
        )
    return files


def _require_one_dtype(shards: list[dict[str, LazyTensor]], folder: Path) -> None:
    for name in shards[0]:
        dtypes = {str(shard[name].dtype).removeprefix("torch.") for shard in shards}
        if len(dtypes) > 1:
            raise CheckpointError(
                f"{folder}: tensor {name} is of type {' and '.join(sorted(dtypes))}; expected one "
                "type in all shards. Take shards that were saved together."
            )


def _read_params(folder: Path, shards: list[dict[str, LazyTensor]]) -> DecoderConfig:
    where = folder / PARAMS_FILE
    record = read_json(where)
    params: dict[str, Any] = record.get("model", record)
    own = (
        read_json(folder / CALUMMA_PARAMS_FILE) if (folder / CALUMMA_PARAMS_FILE).is_file() else {}
    )
    heads, dim = positive_int(params, "n_heads", where), positive_int(params, "dim", where)
    embedding = shards[0].get("tok_embeddings.weight")
    try:
        return DecoderConfig(
            vocabulary_size=embedding.shape[0] if embedding else 1,
            model_dim=dim,
            num_layers=positive_int(params, "n_layers", where),
            num_heads=heads,
            num_kv_heads=positive_int(
                params if params.get("n_kv_heads") else {"n_kv_heads": heads}, "n_kv_heads", where
            ),
            feed_forward_dim=_feed_forward_dim(params, dim),
            max_seq_len=own.get("max_tokens", 4096),
            norm_order="reordered" if params.get("swin_norm") else "pre",
            rope_theta=params.get("rope_theta") or 10_000.0,
            norm_epsilon=params.get("norm_eps") or 1e-5,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: its numbers do not fit. {error}") from error


def _feed_forward_dim(params: Mapping[str, Any], dim: int) -> int:
    """Two thirds of four widths, scaled, and rounded up to a multiple, as in Llama."""
    multiple = params.get("multiple_of") or _MULTIPLE
    scaled = int((params.get("ffn_dim_multiplier") or 1) * int(8 * dim / 3))
    return int(multiple * -(-scaled // multiple))


def _open_image_tokenizer(folder: Path) -> tuple[VQConfig, dict[str, LazyTensor]]:
    if (folder / CONFIG_FILE).is_file():
        return open_image_tokenizer(folder)
    if not (folder / VQGAN_CONFIG_FILE).is_file():
        refuse_model(folder)
    return open_vqgan(folder)


def _text_file(folder: Path) -> Path:
    for name in (META_TOKENIZER_FILE, TOKENIZER_NAME):
        if (folder / name).is_file():
            return folder / name
    raise TokenizerError(
        f"{folder} holds no {META_TOKENIZER_FILE}; expected the release's text tokenizer. Give --tokenizers "
        "DIR if it lies elsewhere."
    )


def _text_tokenizer(text: str, path: Path) -> TextTokenizer:
    try:
        return TextTokenizer(Tokenizer.from_str(text))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{path}: is no tokenizer ({error}); expected the JSON of the tokenizers library."
        ) from error


def rename_placeholder(text: str, *, to_release: bool) -> str:
    """A tokenizer's JSON with its placeholder named as transformers or as the release has it.

    Nothing else changes, to the letter, so that the way there and back ends where it began.
    """
    new, old = (f'"{name}"' for name in PLACEHOLDER_NAMES)
    if to_release:
        new, old = old, new
    return text if new in text else text.replace(old, new)


def write_meta_model(
    folder: Path,
    model: LazyModel,
    num_shards: int | None = None,
    on_write: WriteCallback | None = None,
) -> None:
    """Write a release, all shards side by side, holding a tensor at a time.

    Args:
        folder: gets `models/NAME` and `tokenizer`.
        model: what to write; its head norms are the paper's LayerNorms.
        num_shards: None is one for each group of head norms.
        tell: is called with the bytes of each tensor written.

    Raises:
        CheckpointError: the model cannot be parted so, or Meta's layout has no place for it.
    """
    config = model.decoder_config
    number = num_shards or config.qk_norm_groups
    require_meta_layout(model, number, folder)
    inside = folder / "models" / meta_model_name(model)
    names = [f"consolidated.{shard:02d}.pth" for shard in range(number)]
    paths = [inside / name for name in (names if number > 1 else ["consolidated.pth"])]
    kinds = shard_specs(model.decoder_tensors, config, number)
    with torch_file_writers(dict.fromkeys(paths, kinds)) as writers:
        for name, parts in split_for_shards(model.decoder_tensors, config, number):
            for writer, part in zip(writers, parts, strict=True):
                writer.write(name, part)
                on_write(part.nbytes)
    write_json(inside / SHARD_COUNT_FILE, {"model_parallel_size": number})
    write_json(inside / CALUMMA_PARAMS_FILE, {"max_tokens": config.max_seq_len})
    write_vqgan(folder / "tokenizer", model, on_write)
    text_file = rename_placeholder(model.tokenizer_json, to_release=True)
    write_text(folder / "tokenizer" / META_TOKENIZER_FILE, text_file)
    write_json(inside / PARAMS_FILE, meta_params(config, number))


def require_meta_layout(model: LazyModel, num_shards: int, where: object) -> None:
    """See that a model can be written in so many shards without becoming another one.

    Raises:
        CheckpointError: it cannot, and why.
    """
    config = model.decoder_config
    if config.qk_norm == "none":
        raise CheckpointError(
            f"{where}: queries and keys have no norm, Meta's layout has the paper's LayerNorm "
            "there, and no weights undo it. Use --to calumma."
        )
    if config.qk_norm != "layer":
        raise CheckpointError(
            f"{where}: queries and keys have an RMSNorm, Meta's layout has the paper's LayerNorm "
            "with bias there, and no weights make one of the other. Use --to calumma or --to qwen3."
        )
    if num_shards % config.qk_norm_groups:
        raise CheckpointError(
            f"{where}: {config.qk_norm_groups} groups of heads have norms of their own, which "
            f"{num_shards} shards cannot hold, one norm each; expected a multiple of the groups. Use "
            f"--shards {config.qk_norm_groups}."
        )
    require_divisible(config, num_shards, where)


def meta_model_name(model: LazyModel) -> str:
    """What the release would call a model of that size: 7b, 30b, else its parameters.

    A model of the paper's 34 billion parameters is called 30b there.
    """
    count = model.num_parameters
    billions = round(count / 1e9)
    if billions:
        return _RELEASED.get(billions, f"{billions}b")
    return f"{max(1, round(count / 1e6))}m"


def meta_params(config: DecoderConfig, num_shards: int) -> dict[str, Any]:
    """`params.json`."""
    usual: dict[str, Any] = {"ffn_dim_multiplier": None, "multiple_of": _MULTIPLE}
    if _feed_forward_dim(usual, config.model_dim) != config.feed_forward_dim:
        scale = min(1.0, config.feed_forward_dim / int(8 * config.model_dim / 3))
        usual |= {
            "ffn_dim_multiplier": scale,
            "multiple_of": config.feed_forward_dim,
        }
    return {
        "dim": config.model_dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocabulary_size,
        **usual,
        "norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "qk_normalization": True,
        "swin_norm": config.norm_order == "reordered",
        "model_parallel_size": num_shards,
    }
