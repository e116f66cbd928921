"""Folders in the layout of Meta's Chameleon release.

models/7b/consolidated.pth           the whole decoder, or
models/30b/consolidated.00.pth ...   its tensor-parallel shards
models/*/params.json                 the decoder's config
models/*/consolidate_params.json     number of shards
models/*/calumma.json                max_seq_len, which the others lack (ours, optional)
tokenizer/text_tokenizer.json        the text tokenizer; its image placeholder is <reserved08707>
tokenizer/vqgan.yaml, vqgan.ckpt     the image tokenizer, with taming-transformers' names
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from calumma.checkpoints.hf_config import positive_int
from calumma.checkpoints.hf_qwen3 import open_image_tokenizer
from calumma.checkpoints.lazy_tensor import LazyModel, LazyTensor, LazyTokenizers, require_tensors
from calumma.checkpoints.meta.sharding import (
    fuse_shapes,
    merge_shards,
    require_even_split,
    shard_shapes,
    shard_specs,
    split_for_shards,
    unfuse,
)
from calumma.checkpoints.meta.torch_pickle import open_torch_file, torch_file_writers
from calumma.checkpoints.meta.vqgan_files import open_vqgan, write_vqgan
from calumma.checkpoints.safetensors_io import WriteCallback
from calumma.errors import CheckpointError, ConfigError, TokenizerError
from calumma.files import read_json, write_json, write_text
from calumma.model.config import DecoderConfig
from calumma.tokens.image import IMAGE_TOKENIZER_CONFIG_NAME
from calumma.tokens.text import TEXT_TOKENIZER_NAME, TextTokenizer
from calumma.vocabulary import PLACEHOLDER_NAMES

PARAMS_FILE = "params.json"
SHARD_COUNT_FILE = "consolidate_params.json"
CALUMMA_PARAMS_FILE = "calumma.json"
META_TOKENIZER_FILE = "text_tokenizer.json"
_MODEL_KIND = "a Chameleon release's shard"

_SHARD = re.compile(r"consolidated\.(\d\d)\.pth")
_MULTIPLE = 256
_RELEASED = {7: "7b", 34: "30b"}
"""Billions of parameters -> name of the model in the release."""


def find_meta_model(path: Path) -> Path | None:
    """Return the folder with `params.json`: `path` itself or the only one in its `models`.

    Raises:
        CheckpointError: `models` has several.
    """
    if (path / PARAMS_FILE).is_file():
        return path
    found = sorted(path.glob(f"models/*/{PARAMS_FILE}"))
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds {len(found)} models ({', '.join(p.parent.name for p in found)}); "
            f"expected one. Name it: {found[0].parent}."
        )
    return found[0].parent if found else None


def open_meta_model(folder: Path, tokenizers: Path | None = None) -> LazyModel:
    """Open a model of a release, reading only headers and QK-norms.

    Args:
        folder: contains `params.json`.
        tokenizers: the folder of the tokenizers; None is that of the release.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
        VocabularyError: decoder and tokenizers have different vocabularies.
    """
    tokenizers = tokenizers or folder.parents[1] / "tokenizer"
    shards = [open_torch_file(path) for path in meta_shard_files(folder)]
    config = _read_params(folder, shards)
    require_even_split(config, len(shards), folder)
    unfused = []
    for path, tensors in zip(meta_shard_files(folder), shards, strict=True):
        tensors = {n: t for n, t in tensors.items() if n != "rope.freqs"}
        shapes = shard_shapes(config, len(shards))
        expected = dict(shapes)
        fuse_shapes(expected, config, tensors)
        require_tensors(path, tensors, expected, _MODEL_KIND)
        unfused.append(unfuse(tensors, shapes, config))
    decoder, groups = merge_shards(unfused, config, folder)
    opened = open_release_tokenizers(tokenizers)
    number = f"{len(shards)} shards" if len(shards) > 1 else "one shard"
    model = LazyModel(
        layout=f"a release in Meta's layout ({number})",
        decoder_config=replace(config, qk_norm_groups=groups),
        decoder_tensors=decoder,
        vq_config=opened.vq_config,
        vq_tensors=opened.vq_tensors,
        text_tokenizer=opened.text_tokenizer,
        tokenizer_json=opened.tokenizer_json,
        num_weight_files=len(shards),
    )
    model.require_matching_vocabulary(folder)
    return model


def open_release_tokenizers(folder: Path) -> LazyTokenizers:
    """Open the tokenizers of a release, or of calumma, reading only headers.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
        TokenizerError: there is no text tokenizer.
    """
    if (folder / IMAGE_TOKENIZER_CONFIG_NAME).is_file():
        vq_config, vq_tensors = open_image_tokenizer(folder)
    else:
        vq_config, vq_tensors = open_vqgan(folder)
    path = _text_file(folder)
    text = rename_placeholder(path.read_text(encoding="utf-8"), to_release=False)
    return LazyTokenizers(vq_config, vq_tensors, _text_tokenizer(text, path), text)


def meta_shard_files(folder: Path) -> list[Path]:
    """Return the decoder's files: `consolidated.pth`, or `consolidated.00.pth` and so on.

    Raises:
        CheckpointError: there are none, or one is missing.
    """
    if (folder / "consolidated.pth").is_file():
        files = [folder / "consolidated.pth"]
    else:
        files = sorted(p for p in folder.glob("consolidated.*.pth") if _SHARD.fullmatch(p.name))
    number = len(files)
    if (folder / SHARD_COUNT_FILE).is_file():
        counts = {"model_parallel_size": number or 1} | read_json(folder / SHARD_COUNT_FILE)
        number = positive_int(counts, "model_parallel_size", folder / SHARD_COUNT_FILE)
    names = {path.name for path in files}
    expected = [f"consolidated.{shard:02d}.pth" for shard in range(max(1, number))]
    if names != set(expected) and not (number == 1 and names == {"consolidated.pth"}):
        missing = next((name for name in expected if name not in names), None)
        fault = f"{missing} is missing" if missing else f"{max(names)} is one too many"
        raise CheckpointError(
            f"{folder} holds {len(files)} of {len(expected)} shards, and {fault}; expected "
            "consolidated.pth, or consolidated.00.pth and so on. Copy or download it again."
        )
    return files


def _read_params(folder: Path, shards: list[dict[str, LazyTensor]]) -> DecoderConfig:
    where = folder / PARAMS_FILE
    record = read_json(where)
    params: dict[str, Any] = record.get("model", record)
    own_path = folder / CALUMMA_PARAMS_FILE
    own = read_json(own_path) if own_path.is_file() else {"max_seq_len": 4096}
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
            max_seq_len=positive_int(own, "max_seq_len", own_path),
            norm_order="reordered" if params.get("swin_norm") else "pre",
            rope_theta=params.get("rope_theta") or 10_000.0,
            norm_epsilon=params.get("norm_eps") or 1e-5,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: its numbers do not fit together. {error}") from error


def _feed_forward_dim(params: Mapping[str, Any], dim: int) -> int:
    """Return 8/3 of `dim`, scaled and rounded up to a multiple, as in Llama."""
    multiple = params.get("multiple_of") or _MULTIPLE
    scaled = int((params.get("ffn_dim_multiplier") or 1) * int(8 * dim / 3))
    return int(multiple * -(-scaled // multiple))


def _text_file(folder: Path) -> Path:
    for name in (META_TOKENIZER_FILE, TEXT_TOKENIZER_NAME):
        if (folder / name).is_file():
            return folder / name
    raise TokenizerError(
        f"{folder} holds no {META_TOKENIZER_FILE}; expected the release's text tokenizer. Use "
        "--tokenizers DIR if it is elsewhere."
    )


def _text_tokenizer(text: str, path: Path) -> TextTokenizer:
    try:
        return TextTokenizer(Tokenizer.from_str(text))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{path}: is not a tokenizer ({error}); expected the JSON of the tokenizers library. Copy it again."
        ) from error


def rename_placeholder(text: str, *, to_release: bool) -> str:
    """Rename the image placeholder in a tokenizer's JSON to the release's or transformers' name.

    No other character changes, so that a conversion there and back gives the same file.
    """
    new, old = (f'"{name}"' for name in PLACEHOLDER_NAMES)
    if to_release:
        new, old = old, new
    return text if new in text else text.replace(old, new)


def write_meta_model(
    folder: Path, model: LazyModel, num_shards: int | None = None, on_write: WriteCallback | None = None
) -> None:
    """Write a release, all shards in parallel, one tensor in memory at a time.

    Args:
        folder: for `models/NAME` and `tokenizer`.
        model: what to write; `qk_norm` is "layer".
        num_shards: None is one for each group of QK-norms.
        on_write: called with the number of bytes of each tensor written.

    Raises:
        CheckpointError: the model cannot be split so, or the layout cannot represent it.
    """
    config = model.decoder_config
    number = num_shards or config.qk_norm_groups
    require_meta_layout(model, number, folder)
    model_folder = folder / "models" / meta_model_name(model)
    names = [f"consolidated.{shard:02d}.pth" for shard in range(number)]
    paths = [model_folder / name for name in (names if number > 1 else ["consolidated.pth"])]
    specs = shard_specs(model.decoder_tensors, config, number)
    with torch_file_writers(dict.fromkeys(paths, specs)) as writers:
        for name, parts in split_for_shards(model.decoder_tensors, config, number):
            for writer, part in zip(writers, parts, strict=True):
                writer.write(name, part)
                if on_write is not None:
                    on_write(part.nbytes)
    write_json(model_folder / SHARD_COUNT_FILE, {"model_parallel_size": number})
    write_json(model_folder / CALUMMA_PARAMS_FILE, {"max_seq_len": config.max_seq_len})
    write_vqgan(folder / "tokenizer", model, on_write)
    text_file = rename_placeholder(model.tokenizer_json, to_release=True)
    write_text(folder / "tokenizer" / META_TOKENIZER_FILE, text_file)
    write_json(model_folder / PARAMS_FILE, meta_params(config, number))


def require_meta_layout(model: LazyModel, num_shards: int, where: object) -> None:
    """Check that Meta's layout can represent a model in `num_shards` shards.

    Raises:
        CheckpointError: it cannot.
    """
    config = model.decoder_config
    if config.qk_norm != "layer":
        others = "calumma" if config.qk_norm == "none" else "calumma or --to qwen3"
        raise CheckpointError(
            f'{where} has qk_norm = "{config.qk_norm}"; expected "layer" for --to meta. Use --to {others}.'
        )
    if num_shards % config.qk_norm_groups:
        raise CheckpointError(
            f"{where} has {config.qk_norm_groups} groups of QK-norms, and {num_shards} shards hold one norm each; "
            f"expected a multiple of the groups. Use --shards {config.qk_norm_groups}."
        )
    require_even_split(config, num_shards, where)


def meta_model_name(model: LazyModel) -> str:
    """Return the release's name for a model: 7b, 30b (of 34 billion), else its parameters."""
    count = model.num_parameters
    billions = round(count / 1e9)
    if billions:
        return _RELEASED.get(billions, f"{billions}b")
    return f"{max(1, round(count / 1e6))}m"


def meta_params(config: DecoderConfig, num_shards: int) -> dict[str, Any]:
    """Return the content of `params.json`."""
    feed_forward: dict[str, Any] = {"ffn_dim_multiplier": None, "multiple_of": _MULTIPLE}
    if _feed_forward_dim(feed_forward, config.model_dim) != config.feed_forward_dim:
        scale = min(1.0, config.feed_forward_dim / int(8 * config.model_dim / 3))
        feed_forward |= {"ffn_dim_multiplier": scale, "multiple_of": config.feed_forward_dim}
    return {
        "dim": config.model_dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocabulary_size,
        **feed_forward,
        "norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "qk_normalization": True,
        "swin_norm": config.norm_order == "reordered",
        "model_parallel_size": num_shards,
    }
