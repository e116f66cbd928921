"""Write and parse the JSON files of transformers' model folders."""

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


def special_token_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the special tokens of `generation_config.json`, which `config.json` has too."""
    return {"bos_token_id": vocabulary.bos, "pad_token_id": vocabulary.pad, "eos_token_id": vocabulary.eos}


def common_config(decoder: DecoderConfig, vocabulary: Vocabulary, dtype: torch.dtype) -> dict[str, Any]:
    """Return the entries that Chameleon's and Qwen3's `config.json` share."""
    return {
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
        "attention_bias": False,
        "tie_word_embeddings": False,
        "dtype": str(dtype).removeprefix("torch."),
        **special_token_ids(vocabulary),
    }


def chameleon_config(
    decoder: DecoderConfig, image: VQConfig, text: TextTokenizer, dtype: torch.dtype
) -> dict[str, Any]:
    """Return Chameleon's `config.json`: decoder, image tokenizer, and vocabulary map."""
    names = text.tokenizer.get_vocab(with_added_tokens=True)
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        **common_config(decoder, text.vocabulary, dtype),
        "swin_norm": decoder.norm_order == "reordered",
        "model_parallel_size": decoder.qk_norm_groups,
        "mlp_bias": False,
        "vq_config": _vq_config(image),
        "vocabulary_map": dict(sorted(names.items(), key=lambda item: item[1])),
    }


def _vq_config(image: VQConfig) -> dict[str, Any]:
    # transformers ignores the entry that it does not define, and encodes the whole image.
    context = {} if image.encoder_context == "image" else {"encoder_context": image.encoder_context}
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
        **context,
    }


def chameleon_tokenizer_config(max_seq_len: int) -> dict[str, Any]:
    """Return Chameleon's `tokenizer_config.json`."""
    return fast_tokenizer_config(max_seq_len) | {"processor_class": "ChameleonProcessor"}


def fast_tokenizer_config(max_seq_len: int) -> dict[str, Any]:
    """Return `tokenizer_config.json` of a text-only model with image codes as plain tokens."""
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
        "model_max_length": max_seq_len,
    }


def preprocessor_config(image: VQConfig) -> dict[str, Any]:
    """Return `preprocessor_config.json`: pixels in [-1, 1], as the image tokenizer expects."""
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
    """Return `processor_config.json`."""
    return {
        "processor_class": "ChameleonProcessor",
        "image_seq_length": image.codes_per_image,
        "image_token": IMAGE_PLACEHOLDER_NAME,
    }


def parse_chameleon_config(config: Mapping[str, Any], where: object = "config.json") -> DecoderConfig:
    """Parse the decoder's part of Chameleon's `config.json`.

    The number of QK-norm groups is set to 1, since only the weights contain it.

    Args:
        config: missing entries have transformers' defaults.
        where: the file, for messages.

    Raises:
        CheckpointError: a setting is not supported, or the numbers do not fit.
    """
    require_supported_config(config, where)
    return parse_decoder_config({**_DEFAULTS, **config}, where, swin_norm=bool(config.get("swin_norm")))


_DEFAULTS = {
    "vocab_size": 65_536,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
"""Defaults of transformers' `ChameleonConfig`."""

_MAX_LAYERS = 10_000
"""More are an error of the file: the names of their tensors would fill the memory."""

_COPY_AGAIN = "Copy the file again from where the weights are from."

_SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "tie_word_embeddings": (False, None),
    "use_sliding_window": (False, None),
}
"""transformers' settings that change the computation -> the values that `Decoder` supports."""


def require_supported_config(config: Mapping[str, Any], where: object) -> None:
    """Check that a `config.json` has only settings that `Decoder` supports.

    Raises:
        CheckpointError: it has others; the model would compute something else.
    """
    for name, values in _SUPPORTED_VALUES.items():
        if config.get(name) not in values:
            raise CheckpointError(
                f"{where}: {name} is {json.dumps(config[name])}; expected "
                f"{json.dumps(values[0])}, the only supported value. Use a model with that setting."
            )
    rope = config_table(config, "rope_scaling", where) or config_table(config, "rope_parameters", where)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise CheckpointError(
            f"{where}: rotary embeddings of type {kind!r}; expected 'default', since scaled ones "
            "are not implemented. Use the model from before its context was extended."
        )


def parse_decoder_config(config: Mapping[str, Any], where: object, *, swin_norm: bool) -> DecoderConfig:
    """Parse the entries that Chameleon's and Qwen3's configs share.

    Raises:
        CheckpointError: a number is missing, invalid, or does not fit the others.
    """
    rope = config_table(config, "rope_parameters", where)
    numbers: dict[str, Any] = {"num_key_value_heads": config.get("num_attention_heads")}
    numbers |= {name: value for name, value in config.items() if value is not None}
    numbers["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    for name in ("rope_theta", "rms_norm_eps"):
        if not isinstance(value := numbers.get(name), int | float) or not value > 0:
            raise CheckpointError(f"{where}: {name} is {json.dumps(value)}; expected a number above 0. {_COPY_AGAIN}")
    num_layers = positive_int(numbers, "num_hidden_layers", where)
    if num_layers > _MAX_LAYERS:
        raise CheckpointError(
            f"{where}: num_hidden_layers is {num_layers}; expected at most {_MAX_LAYERS:,}. {_COPY_AGAIN}"
        )
    try:
        return DecoderConfig(
            vocabulary_size=positive_int(numbers, "vocab_size", where),
            model_dim=positive_int(numbers, "hidden_size", where),
            num_layers=num_layers,
            num_heads=positive_int(numbers, "num_attention_heads", where),
            num_kv_heads=positive_int(numbers, "num_key_value_heads", where),
            feed_forward_dim=positive_int(numbers, "intermediate_size", where),
            max_seq_len=positive_int(numbers, "max_position_embeddings", where),
            norm_order="reordered" if swin_norm else "pre",
            rope_theta=numbers["rope_theta"],
            norm_epsilon=numbers["rms_norm_eps"],
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: its numbers do not fit together. {error}") from error


def positive_int(config: Mapping[str, Any], name: str, where: object) -> int:
    """Return a positive integer of a config.

    Raises:
        CheckpointError: it is missing or not an integer of at least 1.
    """
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"{where}: {name} is {json.dumps(value)}; expected an integer of at least 1. {_COPY_AGAIN}"
        )
    return value


def config_table(config: Mapping[str, Any], name: str, where: object) -> Mapping[str, Any]:
    """Return a table of a config; empty if it is missing or null.

    Raises:
        CheckpointError: it is not a table.
    """
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{where}: {name} is {json.dumps(value)}; expected a table of settings. {_COPY_AGAIN}")
    return value


def parse_vq_config(vq: Mapping[str, Any], where: object = "config.json") -> VQConfig:
    """Parse the image tokenizer's config; missing entries have transformers' defaults.

    Raises:
        CheckpointError: a setting is not supported, or the numbers do not fit.
    """
    supported = {"attn_type": "vanilla", "double_latent": False, "in_channels": 3}
    for name, value in supported.items():
        if vq.get(name, value) != value:
            raise CheckpointError(
                f"{where}: {name} of the image tokenizer is {json.dumps(vq[name])}; expected "
                f"{json.dumps(value)}, the only supported value. Use a model with that setting."
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
            encoder_context=vq.get("encoder_context", "image"),
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: its numbers do not fit together. {error}") from error
    except TypeError as error:
        raise CheckpointError(
            f"{where}: a setting of the image tokenizer has another type ({error}); expected numbers and lists of "
            f"them. {_COPY_AGAIN}"
        ) from error
