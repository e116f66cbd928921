"""Every tensor of a decoder has a name in transformers, and no two share one."""

from __future__ import annotations

from calumma.checkpoints.names import decoder_names, heads_of_norm
from calumma.model.decoder import Decoder


def test_every_tensor_has_one_name(decoder: Decoder) -> None:
    names = decoder_names(decoder.config)
    assert set(names) == set(decoder.state_dict())
    assert len(set(names.values())) == len(names)


def test_names_by_hand(decoder: Decoder) -> None:
    names = decoder_names(decoder.config)
    assert names["head.weight"] == "lm_head.weight"
    assert names["blocks.1.attention.key.weight"] == "model.layers.1.self_attn.k_proj.weight"
    assert names["blocks.0.attention_norm.weight"] == "model.layers.0.input_layernorm.weight"


def test_head_norms_are_spelt_out_for_their_heads(decoder: Decoder) -> None:
    assert heads_of_norm("blocks.0.attention.query_norm.bias", decoder.config) == 4
    assert heads_of_norm("blocks.0.attention.key_norm.weight", decoder.config) == 2
    assert heads_of_norm("blocks.0.attention_norm.weight", decoder.config) is None
