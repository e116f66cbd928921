"""The loop of the Chameleon release, written anew from what is known of it, as a peer.

One request at a time. Text and images are made by two decoders, and each switch between them
begins anew: a fresh cache, and the whole history read again; before an image three times, for the
three rows of guidance. Rows are laid end to end, so that no padding reaches the network, and keys
and values go to a cache with room for the longest row. Every id goes to the host before the next.

The network is plain PyTorch over the weights of transformers' port. What is left out: the graph
that the release captures on a GPU behind each switch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.asked import Asked, Reply
from calumma.vocabulary import Vocabulary


class PlainNetwork:
    """The network with a cache of `rows` rows, each of its own length."""

    def __init__(self, port: Any, rows: int, slots: int) -> None:
        self.port, self.config = port, port.config
        weight = port.lm_head.weight
        self.head_dim = self.config.hidden_size // self.config.num_attention_heads
        heads = self.config.num_key_value_heads
        shape = (self.config.num_hidden_layers, rows, heads, slots, self.head_dim)
        self.keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.empty_like(self.keys)
        self.lengths = [0] * rows

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Read each row's new ids; [R, V] float32 logits behind the last of each."""
        device = self.keys.device
        counts = [len(row) for row in rows]
        x = self.port.model.embed_tokens(torch.tensor([i for row in rows for i in row]).to(device))
        places = torch.cat(
            [torch.arange(n, n + c) for n, c in zip(self.lengths, counts, strict=True)]
        )
        cosine, sine = self.port.model.rotary_emb(x[None], places[None].to(device))
        angles = (cosine[0, :, None], sine[0, :, None])
        for number, layer in enumerate(self.port.model.layers):
            x = x + self._mixed(number, layer, x, angles, counts)
            normed = layer.post_attention_layernorm(x)
            gate = F.silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)
            x = x + layer.mlp.down_proj(gate)
        self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]
        ends = torch.tensor(counts).cumsum(0) - 1
        logits: Tensor = self.port.lm_head(self.port.model.norm(x[ends.to(device)]))
        return logits.float()

    def _mixed(
        self, number: int, layer: Any, x: Tensor, angles: tuple[Tensor, Tensor], counts: list[int]
    ) -> Tensor:
        normed, own = layer.input_layernorm(x), layer.self_attn
        q, k, v = (
            project(normed).unflatten(-1, (-1, self.head_dim))
            for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        q = _rotated(_head_norm(own.q_norm, q), *angles)
        k = _rotated(_head_norm(own.k_norm, k), *angles)
        mixed, start = [], 0
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            here, stop = slice(start, start + count), length + count
            keys, values = self.keys[number, row], self.values[number, row]
            keys[:, length:stop] = k[here].transpose(0, 1)
            values[:, length:stop] = v[here].transpose(0, 1)
            one = F.scaled_dot_product_attention(
                q[here].transpose(0, 1)[None],
                keys[None, :, :stop],
                values[None, :, :stop],
                is_causal=count > 1,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            mixed.append(one[0].transpose(0, 1).flatten(1))
            start += count
        out: Tensor = own.o_proj(torch.cat(mixed))
        return out


def _head_norm(norm: Any, x: Tensor) -> Tensor:
    normed = F.layer_norm(x, x.shape[-1:], None, None, 1e-5)
    return normed * norm.weight + norm.bias


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def chosen(logits: Tensor, temperature: float, top_p: float) -> int:
    """One id from [V] logits: temperature, top-p, one draw; on the host when this returns."""
    shares, ids = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    shares = shares.masked_fill(shares.cumsum(dim=-1) - shares > top_p, 0.0)
    return int(ids[torch.multinomial(shares, 1)])


class ReleaseLoop:
    """Serves requests one after another."""

    def __init__(self, port: Any, vocabulary: Vocabulary, codes_per_image: int) -> None:
        self.port, self.vocabulary = port, vocabulary
        self.codes_per_image = codes_per_image
        size = port.config.vocab_size
        device = port.lm_head.weight.device
        self.text_only = torch.full((size,), -math.inf, device=device)
        self.text_only[[vocabulary.eos, vocabulary.begin_image]] = 0.0
        self.text_only[vocabulary.text.start : vocabulary.text.stop] = 0.0
        self.codes_only = torch.full((size,), -math.inf, device=device)
        self.codes_only[vocabulary.codes.start : vocabulary.codes.stop] = 0.0

    @torch.inference_mode()
    def answer(self, asked: Asked, tell: Callable[[], None]) -> list[int]:
        """All new ids of one request; `tell` is called at each that was chosen."""
        reply = Reply(asked, self.vocabulary, self.codes_per_image)
        reply.begin()
        while reply.room > 0:
            one_kind = self._image if reply.codes_owed else self._text
            one_kind([*asked.ids, *reply.ids], reply, tell)
        return reply.ids

    def _text(self, history: list[int], reply: Reply, tell: Callable[[], None]) -> None:
        network = PlainNetwork(self.port, 1, len(history) + reply.room)
        new, seen = history, torch.tensor(history, device=self.text_only.device)
        while reply.room > 0 and not reply.codes_owed:
            scores = network.read([new])[0] + self.text_only
            if not reply.may_begin:
                scores[self.vocabulary.begin_image] = -math.inf
            old = scores[seen]
            scores[seen] = torch.where(old > 0, old / 1.2, old * 1.2)
            new = [chosen(scores, 0.7, 0.9)]
            tell()
            reply.add(new[0])
            seen = torch.cat([seen, torch.tensor(new, device=seen.device)])

    def _image(self, history: list[int], reply: Reply, tell: Callable[[], None]) -> None:
        vocabulary = self.vocabulary
        kept = {vocabulary.bos, vocabulary.begin_image, vocabulary.end_image}
        images = [i for i in history if i in kept or i in vocabulary.codes]
        new = [history, images, [vocabulary.bos, vocabulary.begin_image]]
        network = PlainNetwork(self.port, 3, len(history) + self.codes_per_image)
        while reply.codes_owed:
            full, image, none = network.read(new)
            mixed = none + 1.2 * (image - none) + 3.0 * (full - image)
            id_ = chosen(mixed + self.codes_only, 0.7, 0.9)
            tell()
            reply.add(id_)
            new = [[id_]] * 3
