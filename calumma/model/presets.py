"""Presets of decoder shapes: the paper's 7B and 34B, smaller sizes, and a tiny one for tests.

Source: Chameleon (arXiv:2405.09818) for 7B and 34B, where key/value heads of the 34B and the widths
of feed-forwards are Llama-2's; Mixture-of-Transformers (arXiv:2411.04996), which has the same data
and vocabulary, for the smaller ones. A feed-forward is 8/3 of the model's width, rounded up to 256.
"""

from dataclasses import replace
from typing import Any

from calumma.errors import ConfigError
from calumma.model.config import DecoderConfig

RELEASE_VOCABULARY_SIZE = 65_536
"""Number of token ids in the paper's vocabulary."""


def _pre_norm(model_dim: int, num_layers: int, num_heads: int, feed_forward_dim: int) -> DecoderConfig:
    """Build a shape of the 7B recipe: norms before the branches, dropout, no shared keys."""
    return DecoderConfig(
        vocabulary_size=RELEASE_VOCABULARY_SIZE,
        model_dim=model_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        feed_forward_dim=feed_forward_dim,
        dropout=0.1,
    )


PRESETS = {
    "tiny": _pre_norm(64, 2, 4, 256),
    "37M": _pre_norm(256, 4, 8, 768),
    "94M": _pre_norm(512, 8, 8, 1536),
    "443M": _pre_norm(1024, 24, 16, 2816),
    "1.5B": _pre_norm(2048, 24, 16, 5632),
    "7B": _pre_norm(4096, 32, 32, 11_008),
    "34B": replace(_pre_norm(8192, 48, 64, 22_016), num_kv_heads=8, norm_order="reordered", dropout=0.0),
}
"""By name, the number of parameters with the release's vocabulary. All have max_seq_len 4,096."""


def preset(name: str, **changes: Any) -> DecoderConfig:
    """Return the preset called `name` with some fields changed.

    >>> preset("7B", vocabulary_size=16_384).model_dim
    4096

    Raises:
        ConfigError: the preset is unknown.
    """
    if name not in PRESETS:
        raise ConfigError(f"size {name!r} is not known; expected one of {', '.join(PRESETS)}.")
    return replace(PRESETS[name], **changes)
