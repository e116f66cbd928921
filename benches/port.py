"""Transformers' port of Chameleon as a peer, with our weights under its names.

Its image tokenizer is as small as its config allows, since no benchmark passes pixels to it.
"""

from typing import Any

import torch
from torch import Tensor

from calumma.checkpoints.hf_weights import hf_decoder_names, num_norm_heads
from calumma.model.config import DecoderConfig


def port_config(shape: DecoderConfig) -> Any:
    """Return transformers' config of a decoder."""
    from transformers import ChameleonConfig

    vq = {"base_channels": 32, "channel_multiplier": [1], "num_embeddings": 2, "embed_dim": 2}
    return ChameleonConfig(
        vocab_size=shape.vocabulary_size,
        hidden_size=shape.model_dim,
        intermediate_size=shape.feed_forward_dim,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_seq_len,
        swin_norm=shape.norm_order == "reordered",
        rms_norm_eps=shape.norm_epsilon,
        vocabulary_map={"<image>": 3, "IMGIMGAZ": 4, "IMGIMGBZ": 5},
        vq_config=vq | {"latent_channels": 32, "resolution": 16},
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def port_weights(shape: DecoderConfig, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a decoder's tensors under transformers' names; all but the QK-norms are shared."""
    weights: dict[str, Tensor] = {}
    for name, theirs in hf_decoder_names(shape).items():
        heads = num_norm_heads(name, shape)
        weights[theirs] = ours[name].repeat_interleave(heads, dim=0) if heads else ours[name]
    return weights


def trained_port(shape: DecoderConfig, ours: dict[str, Tensor]) -> Any:
    """Return the port with copies of our weights, float32 on the CPU, for training."""
    from transformers import ChameleonForConditionalGeneration

    port = ChameleonForConditionalGeneration(port_config(shape))
    missing, unexpected = port.load_state_dict(port_weights(shape, ours), strict=False)
    assert not unexpected and all("vqmodel" in name for name in missing)
    return port


def generating_port(shape: DecoderConfig, ours: dict[str, Tensor]) -> Any:
    """Return the port on our own tensors, not copied, with image tokens allowed.

    Its forward masks the logits of all image tokens; a vocabulary map without image tokens
    disables that, as its users do.
    """
    from transformers import ChameleonForConditionalGeneration

    config = port_config(shape)
    with torch.device("meta"):
        port = ChameleonForConditionalGeneration(config)
    port.load_state_dict(port_weights(shape, ours), strict=False, assign=True)
    # Buffers that are no weights have to be rebuilt on the real device.
    rotary: Any = port.model.rotary_emb
    port.model.rotary_emb = type(rotary)(config).to(ours["embedding.weight"].device)
    port.model.vqmodel = None
    port.model.vocabulary_mapping.vocab_map = {"<image>": 3}
    return port.eval()
