"""Model folders of decoders without LayerNorm QK-norm: Qwen3's layout or our own.

    config.json, model*.safetensors      the decoder, with `Qwen3ForCausalLM`'s names
    tokenizer.json and its config        the text tokenizer
    image_tokenizer/                     the image tokenizer as `calumma train-image-tokenizer`
                                         writes it; in a subfolder, because engines load every
                                         safetensors file of the main folder as weights

With RMSNorm QK-norm, pre-norm and one norm for all heads, the decoder is Qwen3's. Any other variant
(reordered norms, no QK-norm) has `model_type` `calumma`, which transformers refuses to load, rather
than one that it would load as another model.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calumma.checkpoints.hf_config import common_config, parse_decoder_config, require_supported_config
from calumma.checkpoints.hf_weights import hf_decoder_names, hf_weight_files, open_hf_tokenizer, open_hf_weights
from calumma.checkpoints.int4_weights import split_int4
from calumma.checkpoints.lazy_tensor import (
    LazyModel,
    LazyTensor,
    decoder_tensor_shapes,
    require_tensors,
    vq_tensor_shapes,
)
from calumma.checkpoints.safetensors_io import open_safetensors
from calumma.errors import CheckpointError, ConfigError
from calumma.files import read_json
from calumma.model.config import DecoderConfig
from calumma.tokens.image import IMAGE_TOKENIZER_CONFIG_NAME, IMAGE_TOKENIZER_WEIGHTS_NAME
from calumma.tokens.vq.config import VQConfig

IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
QWEN3_TYPE, CALUMMA_TYPE = "qwen3", "calumma"
"""Values of `model_type`."""


_QWEN3_SETTINGS = {"qk_norm": "rms", "norm_order": "pre", "qk_norm_groups": 1}
"""Fields of a decoder that computes the same as `Qwen3ForCausalLM`."""


def is_qwen3(config: DecoderConfig) -> bool:
    """Return whether the decoder computes the same as `Qwen3ForCausalLM`."""
    return all(getattr(config, name) == value for name, value in _QWEN3_SETTINGS.items())


def require_qwen3(model: LazyModel, where: object) -> None:
    """Check that a model computes the same as `Qwen3ForCausalLM`.

    Raises:
        CheckpointError: it does not.
    """
    for name, value in _QWEN3_SETTINGS.items():
        found = getattr(model.decoder_config, name)
        if found != value:
            expected = json.dumps(value)
            raise CheckpointError(
                f"{where} has {name} = {json.dumps(found)}; expected {expected} for Qwen3. Use "
                f"--to calumma, or train with {name} = {expected}."
            )


def qwen3_config(model: LazyModel) -> dict[str, Any]:
    """Return the content of `config.json`."""
    config = model.decoder_config
    content = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": QWEN3_TYPE,
        **common_config(config, model.text_tokenizer.vocabulary, model.dtype),
        "head_dim": config.head_dim,
        "use_sliding_window": False,
    }
    if not is_qwen3(config):
        content |= {
            "architectures": ["CalummaDecoder"],
            "model_type": CALUMMA_TYPE,
            "qk_norm": config.qk_norm,
            "qk_norm_groups": config.qk_norm_groups,
            "norm_order": config.norm_order,
        }
    return content


def parse_qwen3_config(config: Mapping[str, Any], where: object) -> DecoderConfig:
    """Parse a `config.json` of either model type.

    Raises:
        CheckpointError: a setting is not supported, or the numbers do not fit.
    """
    require_supported_config(config, where)
    order, groups = config.get("norm_order", "pre"), config.get("qk_norm_groups", 1)
    kind = config.get("qk_norm", "rms")
    if order not in ("pre", "reordered") or not isinstance(groups, int) or groups < 1:
        raise CheckpointError(
            f"{where}: norm_order is {order!r} and qk_norm_groups {groups!r}; expected 'pre' or "
            "'reordered', and a positive number of groups. Copy the file again."
        )
    if kind not in ("rms", "none"):
        raise CheckpointError(f"{where}: qk_norm is {kind!r}; expected 'rms' or 'none'. Copy the file again.")
    numbers = {"rms_norm_eps": 1e-6, **config}
    shape = parse_decoder_config(numbers, where, swin_norm=order == "reordered")
    if config.get("head_dim", 128) != shape.head_dim:
        raise CheckpointError(
            f"{where}: head_dim is {config.get('head_dim', 128)}; expected hidden_size / "
            f"num_attention_heads = {shape.head_dim}. Use a model with that head_dim."
        )
    try:
        return replace(shape, qk_norm=kind, qk_norm_groups=groups)
    except ConfigError as error:
        raise CheckpointError(f"{where}: its numbers do not fit together. {error}") from error


def open_qwen3(folder: Path, config: Mapping[str, Any]) -> LazyModel:
    """Open a folder without reading its tensors.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
    """
    decoder_config = parse_qwen3_config(config, folder / "config.json")
    names, shapes = hf_decoder_names(decoder_config), decoder_tensor_shapes(decoder_config)
    image_folder = folder / IMAGE_TOKENIZER_FOLDER
    if not (image_folder / IMAGE_TOKENIZER_CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{folder} is a text model without {IMAGE_TOKENIZER_FOLDER}/{IMAGE_TOKENIZER_CONFIG_NAME}; expected a "
            "Qwen3 folder that calumma wrote. Copy its image tokenizer into the folder."
        )
    weights, int4_matrices = split_int4(open_hf_weights(folder), config, folder)
    expected = {theirs: _stored_shape(shapes[ours], ours, decoder_config) for ours, theirs in names.items()}
    require_tensors(folder, weights, expected, "a Qwen3 decoder")
    decoder = {ours: weights[theirs].reshape(shapes[ours]) for ours, theirs in names.items()}
    vq_config, vq_tensors = open_image_tokenizer(image_folder)
    text_tokenizer, tokenizer_json = open_hf_tokenizer(folder)
    return LazyModel(
        layout="a Qwen3 folder" if is_qwen3(decoder_config) else "a calumma folder",
        decoder_config=decoder_config,
        decoder_tensors=decoder,
        int4_matrices={ours: int4_matrices[theirs] for ours, theirs in names.items() if theirs in int4_matrices},
        vq_config=vq_config,
        vq_tensors=vq_tensors,
        text_tokenizer=text_tokenizer,
        tokenizer_json=tokenizer_json,
        num_weight_files=len(hf_weight_files(folder)),
    )


def open_image_tokenizer(folder: Path) -> tuple[VQConfig, dict[str, LazyTensor]]:
    """Return the config and the tensors of an image tokenizer's folder; its decoder may be missing.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
    """
    path, weights = folder / IMAGE_TOKENIZER_CONFIG_NAME, folder / IMAGE_TOKENIZER_WEIGHTS_NAME
    try:
        config = VQConfig(**read_json(path))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is not an image tokenizer's config ({error}); expected the file that "
            "`calumma train-image-tokenizer` writes. Copy it again."
        ) from error
    if not weights.is_file():
        raise CheckpointError(
            f"{folder} lacks {IMAGE_TOKENIZER_WEIGHTS_NAME}; expected the weights that belong to "
            f"{IMAGE_TOKENIZER_CONFIG_NAME}. Copy the folder again."
        )
    tensors, expected = open_safetensors(weights), vq_tensor_shapes(config)
    if not any(name.startswith("decoder.") for name in tensors):
        expected = {
            name: shape
            for name, shape in expected.items()
            if name in tensors or not name.startswith(("decoder.", "post_quant_conv."))
        }
    require_tensors(weights, tensors, expected, "an image tokenizer")
    return config, tensors


def qwen3_tensors(model: LazyModel) -> dict[str, LazyTensor]:
    """Return the tensors of the folder's weights."""
    tensors = {}
    for ours, theirs in hf_decoder_names(model.decoder_config).items():
        tensor = model.decoder_tensors[ours]
        tensors[theirs] = tensor.reshape(_stored_shape(tensor.shape, ours, model.decoder_config))
    return tensors


def _stored_shape(shape: tuple[int, ...], name: str, config: DecoderConfig) -> tuple[int, ...]:
    """Return the shape of a tensor in the folder: Qwen3's QK-norms have no group dimension."""
    head_norm = name.endswith(("query_norm.weight", "key_norm.weight"))
    return shape[1:] if head_norm and is_qwen3(config) else shape
