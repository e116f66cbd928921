"""Names of the decoder's weights in a Hugging Face folder."""

from calumma.model.config import DecoderConfig

VQ_PREFIX = "model.vqmodel."
"""Prefix of the image tokenizer's encoder and codebook in transformers' state dict."""

_TOP_LEVEL = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_PER_BLOCK = {
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


def hf_decoder_names(config: DecoderConfig) -> dict[str, str]:
    """Return the name in `Decoder` -> transformers' name, for every tensor of the decoder."""
    blocks = {
        f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(config.num_layers)
        for ours, theirs in _PER_BLOCK.items()
        if not _is_absent(ours, config)
    }
    return _TOP_LEVEL | blocks


def _is_absent(name: str, config: DecoderConfig) -> bool:
    """Return whether the name is of a QK-norm parameter that this decoder lacks."""
    if config.qk_norm == "layer" or num_norm_heads(name, config) is None:
        return False
    return config.qk_norm == "none" or name.endswith(".bias")


def num_norm_heads(name: str, config: DecoderConfig) -> int | None:
    """Return how many heads a QK-norm tensor is repeated for, or None if it is none."""
    if ".query_norm." in name:
        return config.num_heads
    if ".key_norm." in name:
        return config.num_kv_heads
    return None
