"""Tests of the names of the decoder's weights in transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from calumma.checkpoints.hf_weight_names import hf_decoder_names, num_norm_heads
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder


@pytest.mark.parametrize("qk_norm", ["layer", "rms", "none"])
def test_every_tensor_has_a_unique_name(decoder_config: DecoderConfig, qk_norm: Any) -> None:
    config = replace(decoder_config, qk_norm=qk_norm)
    names = hf_decoder_names(config)
    assert set(names) == set(Decoder(config).state_dict())
    assert len(set(names.values())) == len(names)


def test_names_by_hand(decoder: Decoder) -> None:
    names = hf_decoder_names(decoder.config)
    assert names["head.weight"] == "lm_head.weight"
    assert names["blocks.1.attention.key.weight"] == "model.layers.1.self_attn.k_proj.weight"
    assert names["blocks.0.attention_norm.weight"] == "model.layers.0.input_layernorm.weight"


def test_num_norm_heads(decoder: Decoder) -> None:
    assert num_norm_heads("blocks.0.attention.query_norm.bias", decoder.config) == 4
    assert num_norm_heads("blocks.0.attention.key_norm.weight", decoder.config) == 2
    assert num_norm_heads("blocks.0.attention_norm.weight", decoder.config) is None
