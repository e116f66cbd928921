"""Reference forward pass of Meta's shards, with interleaved rotary embeddings.

Slow and independent of the package, to compare the reading of releases with it.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def run_release(folder: Path, params: dict[str, Any], ids: Tensor) -> Tensor:
    """Return the logits [B, T, V] of the shards in a folder; sums replace the all-reduce."""
    files = sorted(folder.glob("consolidated*.pth"))
    shards = [torch.load(file, weights_only=True) for file in files]
    x = torch.cat([F.embedding(ids, shard["tok_embeddings.weight"]) for shard in shards], -1)
    for layer in range(params["n_layers"]):
        parts = [_of_layer(shard, f"layers.{layer}.") for shard in shards]
        for branch, norm in ((_attention, "attention_norm"), (_feed_forward, "ffn_norm")):
            weight = parts[0][f"{norm}.weight"]
            if params["swin_norm"]:
                x = x + _rms(_sum(branch, parts, params, x), weight, params)
            else:
                x = x + _sum(branch, parts, params, _rms(x, weight, params))
    x = _rms(x, shards[0]["norm.weight"], params)
    return torch.cat([x @ shard["output.weight"].T for shard in shards], -1)


def _sum(branch: Any, parts: list[dict[str, Tensor]], params: dict[str, Any], x: Tensor) -> Tensor:
    return torch.stack([branch(part, params, len(parts), x) for part in parts]).sum(0)


def _of_layer(shard: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in shard.items() if n.startswith(prefix)}


def _rms(x: Tensor, weight: Tensor, params: dict[str, Any]) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + params["norm_eps"]).rsqrt() * weight


def _attention(part: dict[str, Tensor], params: dict[str, Any], shards: int, x: Tensor) -> Tensor:
    head_dim = params["dim"] // params["n_heads"]
    query_heads, key_heads = params["n_heads"] // shards, params["n_kv_heads"] // shards
    widths = [query_heads * head_dim, key_heads * head_dim, key_heads * head_dim]
    q, k, v = ((x @ rows.T).unflatten(-1, (-1, head_dim)) for rows in part["attention.wqkv.weight"].split(widths))
    norms = [
        (part[f"attention.{name}_normalization.weight"], part[f"attention.{name}_normalization.bias"])
        for name in ("q", "k")
    ]
    q, k = (_rotate(F.layer_norm(each, (head_dim,), *norm), params) for each, norm in zip((q, k), norms, strict=True))
    k, v = (each.repeat_interleave(query_heads // key_heads, dim=2) for each in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / head_dim**0.5
    later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    mixed = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(later, -torch.inf).softmax(-1), v)
    return mixed.flatten(2) @ part["attention.wo.weight"].T


def _rotate(x: Tensor, params: dict[str, Any]) -> Tensor:
    """Rotate channels 2i and 2i + 1 of [B, T, H, D] as one complex number by its position."""
    head_dim = x.shape[-1]
    frequencies = params["rope_theta"] ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.outer(torch.arange(x.shape[1]), frequencies)[:, None]
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def _feed_forward(part: dict[str, Tensor], params: Any, shards: int, x: Tensor) -> Tensor:
    gate, up = part["feed_forward.w13.weight"].chunk(2)
    return (F.silu(x @ gate.T) * (x @ up.T)) @ part["feed_forward.w2.weight"].T
