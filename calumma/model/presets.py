"""The shapes we name: the paper's two, the ladder below them, and tiny ones for tests.

Source: Chameleon (arXiv:2405.09818) for 7B and 34B, where key/value heads of the 34B and the widths
of feed-forwards are Llama-2's; Mixture-of-Transformers (arXiv:2411.04996), which has the same data
and vocabulary, for the ladder. A feed-forward is 8/3 of the model's width, rounded up to 256.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calumma.errors import ConfigError
from calumma.model.config import DecoderConfig

RELEASE_VOCABULARY = 65_536
"""Ids of the paper's vocabulary."""


def _pre(model_dim: int, num_layers: int, num_heads: int, feed_forward_dim: int) -> DecoderConfig:
    """The recipe of the 7B: norms before the branches, dropout, no shared keys."""
    return DecoderConfig(
        vocabulary_size=RELEASE_VOCABULARY,
        model_dim=model_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        feed_forward_dim=feed_forward_dim,
        dropout=0.1,
    )


SIZES = {
    "tiny": _pre(64, 2, 4, 256),
    "37M": _pre(256, 4, 8, 768),
    "94M": _pre(512, 8, 8, 1536),
    "443M": _pre(1024, 24, 16, 2816),
    "1.5B": _pre(2048, 24, 16, 5632),
    "7B": _pre(4096, 32, 32, 11_008),
    "34B": replace(_pre(8192, 48, 64, 22_016), num_kv_heads=8, norm_order="reordered", dropout=0.0),
}
"""By name, which tells the parameters at the release's vocabulary. All read 4,096 ids."""


def decoder_size(name: str, **changes: Any) -> DecoderConfig:
    """The shape called `name`, some fields changed.

    >>> decoder_size("7B", vocabulary_size=16_384).model_dim
    4096

    Raises:
        ConfigError: there is no such size.
    """
    if name not in SIZES:
        raise ConfigError(f"size {name!r} is not known; expected one of {', '.join(SIZES)}.")
    return replace(SIZES[name], **changes)
