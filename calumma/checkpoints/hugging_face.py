"""The JSON files beside the weights, as transformers wants them, and how its config is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

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
        "max_position_embeddings": decoder.max_tokens,
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
        "processor_class": "ChameleonProcessor",
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


def read_decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder's shape out of a `config.json`, with one group of norms: the weights tell."""
    rope = config.get("rope_parameters") or {}
    return DecoderConfig(
        vocabulary_size=config["vocab_size"],
        model_dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        feed_forward_dim=config["intermediate_size"],
        max_tokens=config.get("max_position_embeddings", 4096),
        norm_order="reordered" if config.get("swin_norm") else "pre",
        rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10_000.0,
        norm_epsilon=config.get("rms_norm_eps", 1e-5),
    )


def read_vq_config(vq: Mapping[str, Any]) -> VQConfig:
    """The image tokenizer's shape; fields that are left out are transformers' defaults."""
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
