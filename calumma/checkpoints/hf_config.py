"""The JSON files beside the weights, as transformers wants them, and how its config is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from calumma.errors import CheckpointError, ConfigError
from calumma.model.config import DecoderConfig
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.vocabulary import (
    BEGIN_IMAGE_NAME,
    BOS_NAME,
    END_IMAGE_NAME,
    END_TURN_NAME,
    EOS_NAME,
    IMAGE_PLACEHOLDER_NAME,
    PAD_NAME,
    UNK_NAME,
    Vocabulary,
)

LANCZOS = 1


def special_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """`generation_config.json`, and a part of `config.json`."""
    return {
        "bos_token_id": vocabulary.bos,
        "pad_token_id": vocabulary.pad,
        "eos_token_id": vocabulary.eos,
    }


def model_config(
    decoder: DecoderConfig, image: VQConfig, text: TextTokenizer, dtype: torch.dtype
) -> dict[str, Any]:
    """`config.json`: the shapes of decoder and image tokenizer, and the table of names."""
    names = text.tokenizer.get_vocab(with_added_tokens=True)
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "vocab_size": decoder.vocabulary_size,
        "hidden_size": decoder.model_dim,
        "intermediate_size": decoder.feed_forward_dim,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "max_position_embeddings": decoder.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_epsilon,
        "rope_theta": decoder.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_theta},
        "swin_norm": decoder.norm_order == "reordered",
        "model_parallel_size": decoder.qk_norm_groups,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "dtype": str(dtype).removeprefix("torch."),
        "vq_config": _vq_config(image),
        "vocabulary_map": dict(sorted(names.items(), key=lambda item: item[1])),
        **special_ids(text.vocabulary),
    }


def _vq_config(image: VQConfig) -> dict[str, Any]:
    return {
        "model_type": "chameleon_vqgan",
        "resolution": image.resolution,
        "in_channels": 3,
        "base_channels": image.base_channels,
        "channel_multiplier": list(image.channel_multipliers),
        "num_res_blocks": image.num_res_blocks,
        "latent_channels": image.latent_channels,
        "embed_dim": image.code_dim,
        "num_embeddings": image.num_codes,
        "attn_resolutions": list(image.attention_resolutions) or None,
        "attn_type": "vanilla",
        "double_latent": False,
        "dropout": image.dropout,
    }


def tokenizer_config(max_tokens: int) -> dict[str, Any]:
    """`tokenizer_config.json`."""
    return text_model_tokenizer_config(max_tokens) | {"processor_class": "ChameleonProcessor"}


def text_model_tokenizer_config(max_tokens: int) -> dict[str, Any]:
    """`tokenizer_config.json` for software that takes image codes for ordinary ids."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_NAME,
        "pad_token": PAD_NAME,
        "eos_token": EOS_NAME,
        "unk_token": UNK_NAME,
        "sep_token": END_TURN_NAME,
        "image_token": IMAGE_PLACEHOLDER_NAME,
        "boi_token": BEGIN_IMAGE_NAME,
        "eoi_token": END_IMAGE_NAME,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
    }


def preprocessor_config(image: VQConfig) -> dict[str, Any]:
    """`preprocessor_config.json`: pixels from -1 to 1, as the image tokenizer takes them."""
    side = image.resolution
    return {
        "image_processor_type": "ChameleonImageProcessor",
        "processor_class": "ChameleonProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": LANCZOS,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        # transformers' own default, 0.0078, darkens bright pixels by up to 0.011.
        "rescale_factor": 2 / 255,
        "do_normalize": True,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
    }


def processor_config(image: VQConfig) -> dict[str, Any]:
    """`processor_config.json`."""
    return {
        "processor_class": "ChameleonProcessor",
        "image_seq_length": image.codes_per_image,
        "image_token": IMAGE_PLACEHOLDER_NAME,
    }


def read_decoder_config(config: Mapping[str, Any], where: object = "config.json") -> DecoderConfig:
    """The decoder's shape out of a `config.json`, with one group of norms: the weights tell.

    Args:
        config: a Chameleon's; what it leaves out is transformers' default.
        where: the file, for messages.

    Raises:
        CheckpointError: it asks for what this decoder does not do, or its numbers do not fit.
    """
    require_same_function(config, where)
    return decoder_config({**_DEFAULTS, **config}, where, swin_norm=bool(config.get("swin_norm")))


_DEFAULTS = {
    "vocab_size": 65_536,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
"""transformers' own, of `ChameleonConfig`."""

_DONE_HERE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "tie_word_embeddings": (False, None),
    "use_sliding_window": (False, None),
}
"""Settings of transformers that change the function, and the values for which it is ours."""


def require_same_function(config: Mapping[str, Any], where: object) -> None:
    """See that a `config.json` asks for nothing that this decoder does not do.

    Raises:
        CheckpointError: it does; loaded all the same, the model would be another function.
    """
    for name, values in _DONE_HERE.items():
        if config.get(name) not in values:
            raise CheckpointError(
                f"{where}: {name} is {json.dumps(config[name])}; expected "
                f"{json.dumps(values[0])}, the only value that calumma's decoder knows. Loaded all "
                "the same, the model would be another one."
            )
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise CheckpointError(
            f"{where}: rotary positions of type {kind!r}; expected 'default', since scaled ones are "
            "not implemented. Take the model from before its context was stretched."
        )


def decoder_config(config: Mapping[str, Any], where: object, *, swin_norm: bool) -> DecoderConfig:
    """A decoder's shape by the names that Chameleon's and Qwen3's configs share.

    Raises:
        CheckpointError: a number is missing, is none, or does not fit the others.
    """
    rope = config.get("rope_parameters") or {}
    numbers: dict[str, Any] = {"num_key_value_heads": config.get("num_attention_heads")}
    numbers |= {name: value for name, value in config.items() if value is not None}
    try:
        return DecoderConfig(
            vocabulary_size=whole_number(numbers, "vocab_size", where),
            model_dim=whole_number(numbers, "hidden_size", where),
            num_layers=whole_number(numbers, "num_hidden_layers", where),
            num_heads=whole_number(numbers, "num_attention_heads", where),
            num_kv_heads=whole_number(numbers, "num_key_value_heads", where),
            feed_forward_dim=whole_number(numbers, "intermediate_size", where),
            max_seq_len=whole_number(numbers, "max_position_embeddings", where),
            norm_order="reordered" if swin_norm else "pre",
            rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10_000.0,
            norm_epsilon=numbers["rms_norm_eps"],
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: its numbers do not fit. {error}") from error


def whole_number(config: Mapping[str, Any], name: str, where: object) -> int:
    """A count of a config.

    Raises:
        CheckpointError: it is missing, or no whole number of at least 1.
    """
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"{where}: {name} is {json.dumps(value)}; expected a whole number of at least 1. Copy "
            "the file again from where the weights come."
        )
    return value


def read_vq_config(vq: Mapping[str, Any], where: object = "config.json") -> VQConfig:
    """The image tokenizer's shape; fields that are left out are transformers' defaults.

    Raises:
        CheckpointError: it is a shape that this image tokenizer does not have.
    """
    known = {"attn_type": "vanilla", "double_latent": False, "in_channels": 3}
    for name, value in known.items():
        if vq.get(name, value) != value:
            raise CheckpointError(
                f"{where}: {name} of the image tokenizer is {json.dumps(vq[name])}; expected "
                f"{json.dumps(value)}, the only value that calumma's network knows."
            )
    try:
        return VQConfig(
            resolution=vq.get("resolution", 512),
            base_channels=vq.get("base_channels", 128),
            channel_multipliers=tuple(vq.get("channel_multiplier") or (1, 1, 2, 2, 4)),
            num_res_blocks=vq.get("num_res_blocks", 2),
            latent_channels=vq.get("latent_channels", 256),
            code_dim=vq.get("embed_dim", 256),
            num_codes=vq.get("num_embeddings", 8192),
            attention_resolutions=tuple(vq.get("attn_resolutions") or ()),
            dropout=vq.get("dropout", 0.0),
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: its numbers do not fit. {error}") from error
