"""The names of a decoder's tensors in a Hugging Face folder."""

from __future__ import annotations

from calumma.model.config import DecoderConfig

VQ_PREFIX = "model.vqmodel."
"""Where transformers keeps the image tokenizer's encoder and codebook."""

_OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "attention.query_norm.weight": "self_attn.q_norm.weight",
    "attention.query_norm.bias": "self_attn.q_norm.bias",
    "attention.key_norm.weight": "self_attn.k_norm.weight",
    "attention.key_norm.bias": "self_attn.k_norm.bias",
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
}


def decoder_names(config: DecoderConfig) -> dict[str, str]:
    """Our name -> transformers' name, for every tensor of the decoder."""
    inside = {
        f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(config.num_layers)
        for ours, theirs in _IN_BLOCK.items()
        if not _lacking(ours, config)
    }
    return _OUTSIDE | inside


def _lacking(name: str, config: DecoderConfig) -> bool:
    """Whether it belongs to a head norm of another kind than this decoder's."""
    if config.qk_norm == "layer" or heads_of_norm(name, config) is None:
        return False
    return config.qk_norm == "none" or name.endswith(".bias")


def heads_of_norm(name: str, config: DecoderConfig) -> int | None:
    """How many heads a head norm is spelt out for; None where `name` is no head norm."""
    if ".query_norm." in name:
        return config.num_heads
    if ".key_norm." in name:
        return config.num_kv_heads
    return None
