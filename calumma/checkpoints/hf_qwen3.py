"""Folders of decoders without the paper's norm of queries and keys: Qwen3's, or our own kind.

    config.json, model*.safetensors      the decoder, as `Qwen3ForCausalLM` names it
    tokenizer.json and its config        the text tokenizer
    image_tokenizer/                     the image tokenizer as `calumma train-image-tokenizer`
                                         writes it; in a folder of its own, because engines take
                                         every safetensors file beside the config for weights

With an RMSNorm there, pre-norm and one norm for all heads the decoder *is* Qwen3's, so its folder
says so. Any other (with re-ordered norms, or no norm of queries and keys) is no function that other
software has: its config is of type `calumma`, which transformers refuses to load, rather than one
it would load as another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calumma.checkpoints.hf_config import decoder_config, require_same_function, special_ids
from calumma.checkpoints.hf_weight_names import decoder_names
from calumma.checkpoints.hf_weights import read_weights, weight_files
from calumma.checkpoints.lazy_tensor import (
    LazyModel,
    LazyTensor,
    decoder_tensor_shapes,
    require_tensors,
    vq_tensor_shapes,
)
from calumma.checkpoints.safetensors_io import read_tensors
from calumma.errors import CheckpointError, ConfigError
from calumma.files import read_json
from calumma.model.config import DecoderConfig
from calumma.tokens.image import CONFIG_FILE, WEIGHTS_FILE
from calumma.tokens.text import FILE_NAME as TOKENIZER_NAME
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig

IMAGE_FOLDER = "image_tokenizer"
QWEN3, OWN = "qwen3", "calumma"
"""Values of `model_type`."""


def is_qwen3(config: DecoderConfig) -> bool:
    """Whether the decoder is the same function as `Qwen3ForCausalLM`."""
    kind = (config.qk_norm, config.norm_order, config.qk_norm_groups)
    return kind == ("rms", "pre", 1)


def require_qwen3(model: LazyModel, where: object) -> None:
    """See that a model can be written as Qwen3's without becoming another one.

    Raises:
        CheckpointError: it cannot, and why.
    """
    shape = model.decoder_config
    if shape.qk_norm == "none":
        raise CheckpointError(
            f"{where}: queries and keys have no norm, Qwen3 has an RMSNorm there, and no weights "
            'undo it. Use --to calumma, or train with qk_norm = "rms".'
        )
    if shape.qk_norm != "rms":
        raise CheckpointError(
            f"{where}: queries and keys have the paper's LayerNorm with bias, Qwen3 has an RMSNorm "
            "there, and no weights make one of the other. Use --to calumma, or train with "
            'qk_norm = "rms".'
        )
    if shape.norm_order != "pre":
        raise CheckpointError(
            f"{where}: its norms are re-ordered (they stand behind the branches), Qwen3's stand "
            "before them, and no weights make one of the other. Use --to calumma, or train with "
            'norm_order = "pre".'
        )
    if shape.qk_norm_groups != 1:
        raise CheckpointError(
            f"{where}: {shape.qk_norm_groups} groups of heads have norms of their own, in Qwen3 "
            "all heads of a layer share one. Use --to calumma, or train with qk_norm_groups = 1."
        )


def qwen3_config(model: LazyModel) -> dict[str, Any]:
    """`config.json`."""
    shape = model.decoder_config
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": QWEN3,
        "vocab_size": shape.vocabulary_size,
        "hidden_size": shape.model_dim,
        "intermediate_size": shape.feed_forward_dim,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "dtype": str(model.dtype).removeprefix("torch."),
        **special_ids(model.text_tokenizer.vocabulary),
    }
    if not is_qwen3(shape):
        config |= {
            "architectures": ["CalummaDecoder"],
            "model_type": OWN,
            "qk_norm": shape.qk_norm,
            "qk_norm_groups": shape.qk_norm_groups,
            "norm_order": shape.norm_order,
        }
    return config


def read_qwen3_config(config: Mapping[str, Any], where: object) -> DecoderConfig:
    """The decoder's shape out of a `config.json` of either type.

    Raises:
        CheckpointError: it asks for what this decoder does not do, or its numbers do not fit.
    """
    require_same_function(config, where)
    order, groups = config.get("norm_order", "pre"), config.get("qk_norm_groups", 1)
    kind = config.get("qk_norm", "rms")
    if order not in ("pre", "reordered") or not isinstance(groups, int) or groups < 1:
        raise CheckpointError(
            f"{where}: norm_order is {order!r} and qk_norm_groups {groups!r}; expected 'pre' or "
            "'reordered', and a whole number of groups. Copy the file again."
        )
    if kind not in ("rms", "none"):
        raise CheckpointError(
            f"{where}: qk_norm is {kind!r}; expected 'rms' or 'none'. Copy the file again."
        )
    numbers = {"rms_norm_eps": 1e-6, **config}
    shape = decoder_config(numbers, where, swin_norm=order == "reordered")
    if config.get("head_dim", 128) != shape.head_dim:
        raise CheckpointError(
            f"{where}: head_dim is {config.get('head_dim', 128)}; expected hidden_size over "
            f"num_attention_heads, {shape.head_dim}, since calumma's heads share the model's width."
        )
    try:
        return replace(shape, qk_norm=kind, qk_norm_groups=groups)
    except ConfigError as error:
        raise CheckpointError(f"{where}: its numbers do not fit. {error}") from error


def open_qwen3(folder: Path, config: Mapping[str, Any]) -> LazyModel:
    """Look at a folder, reading no tensor.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
    """
    shape = read_qwen3_config(config, folder / "config.json")
    names, shapes = decoder_names(shape), decoder_tensor_shapes(shape)
    image_folder = folder / IMAGE_FOLDER
    if not (image_folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{folder} is a text model without {IMAGE_FOLDER}/{CONFIG_FILE}; expected a Qwen3 folder "
            "that calumma wrote, with its image tokenizer beside it."
        )
    weights = read_weights(folder)
    wanted = {theirs: _outside(shapes[ours], ours, shape) for ours, theirs in names.items()}
    require_tensors(folder, weights, wanted, "a Qwen3 decoder")
    decoder = {
        ours: weights[theirs].map(shapes[ours], _in_shape(shapes[ours]))
        for ours, theirs in names.items()
    }
    image_shape, image = open_image_tokenizer(image_folder)
    kind = "a Qwen3 folder" if is_qwen3(shape) else "a model folder of calumma's own kind"
    return LazyModel(
        layout=kind,
        decoder_config=shape,
        decoder_tensors=decoder,
        vq_config=image_shape,
        vq_tensors=image,
        text_tokenizer=TextTokenizer.load(folder),
        tokenizer_json=(folder / TOKENIZER_NAME).read_text(encoding="utf-8"),
        num_weight_files=len(weight_files(folder)),
    )


def open_image_tokenizer(folder: Path) -> tuple[VQConfig, dict[str, LazyTensor]]:
    """The shape and the tensors of an image tokenizer's folder; its decoder may be lacking.

    Raises:
        CheckpointError: a file or a tensor is missing, unknown, broken or of the wrong shape.
    """
    path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    try:
        config = VQConfig(**read_json(path))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(
            f"{path}: describes no image tokenizer ({error}); expected the file as "
            "`calumma train-image-tokenizer` writes it. Copy it again."
        ) from error
    if not weights.is_file():
        raise CheckpointError(
            f"{folder} lacks {WEIGHTS_FILE}; expected the weights that belong to {CONFIG_FILE}. Copy "
            "the folder again."
        )
    tensors, wanted = read_tensors(weights), vq_tensor_shapes(config)
    if not any(name.startswith("decoder.") for name in tensors):
        wanted = {
            name: shape
            for name, shape in wanted.items()
            if name in tensors or not name.startswith(("decoder.", "post_quant_conv."))
        }
    require_tensors(weights, tensors, wanted, "an image tokenizer")
    return config, tensors


def qwen3_tensors(model: LazyModel) -> dict[str, LazyTensor]:
    """What goes into the folder's weights."""
    tensors = {}
    for ours, theirs in decoder_names(model.decoder_config).items():
        shape = _outside(model.decoder_tensors[ours].shape, ours, model.decoder_config)
        tensors[theirs] = model.decoder_tensors[ours].map(shape, _in_shape(shape))
    return tensors


def _outside(shape: tuple[int, ...], name: str, config: DecoderConfig) -> tuple[int, ...]:
    """The shape of a tensor in the folder: in Qwen3's, a head norm has no groups."""
    head_norm = name.endswith(("query_norm.weight", "key_norm.weight"))
    return shape[1:] if head_norm and is_qwen3(config) else shape


def _in_shape(shape: tuple[int, ...]) -> Any:
    return lambda tensor: tensor.reshape(shape)
