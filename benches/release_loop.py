"""Peer: the generation loop of the Chameleon release, reimplemented.

One request at a time. Text and images have separate loops, and each switch between them starts with
an empty KV cache and prefills the full history again, three times for an image: once for each
sequence of classifier-free guidance. Sequences are concatenated without padding, and the cache has
the length of the longest one. Every token goes to the host before the next.

The network is plain PyTorch with the weights of transformers' port. The CUDA graph that the release
captures after each switch is left out.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.generation_requests import BenchRequest, OutputState
from calumma.vocabulary import Vocabulary


class PlainNetwork:
    """The network with a KV cache of `rows` sequences of different lengths."""

    def __init__(self, port: Any, rows: int, slots: int) -> None:
        self.port, self.config = port, port.config
        weight = port.lm_head.weight
        self.head_dim = self.config.hidden_size // self.config.num_attention_heads
        heads = self.config.num_key_value_heads
        shape = (self.config.num_hidden_layers, rows, heads, slots, self.head_dim)
        self.keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.empty_like(self.keys)
        self.lengths = [0] * rows

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Compute new tokens of each sequence; returns [R, V] float32 logits after the last."""
        device = self.keys.device
        counts = [len(row) for row in rows]
        x = self.port.model.embed_tokens(torch.tensor([i for row in rows for i in row]).to(device))
        positions = torch.cat([torch.arange(n, n + c) for n, c in zip(self.lengths, counts, strict=True)])
        cos, sin = self.port.model.rotary_emb(x[None], positions[None].to(device))
        angles = (cos[0, :, None], sin[0, :, None])
        for index, layer in enumerate(self.port.model.layers):
            x = x + self._attention(index, layer, x, angles, counts)
            normalized = layer.post_attention_layernorm(x)
            gate = F.silu(layer.mlp.gate_proj(normalized)) * layer.mlp.up_proj(normalized)
            x = x + layer.mlp.down_proj(gate)
        self.lengths = [n + c for n, c in zip(self.lengths, counts, strict=True)]
        ends = torch.tensor(counts).cumsum(0) - 1
        logits: Tensor = self.port.lm_head(self.port.model.norm(x[ends.to(device)]))
        return logits.float()

    def _attention(
        self, index: int, layer: Any, x: Tensor, angles: tuple[Tensor, Tensor], counts: list[int]
    ) -> Tensor:
        normalized, attention = layer.input_layernorm(x), layer.self_attn
        q, k, v = (
            project(normalized).unflatten(-1, (-1, self.head_dim))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q = _rotate(_qk_norm(attention.q_norm, q), *angles)
        k = _rotate(_qk_norm(attention.k_norm, k), *angles)
        outputs, start = [], 0
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            new, stop = slice(start, start + count), length + count
            keys, values = self.keys[index, row], self.values[index, row]
            keys[:, length:stop] = k[new].transpose(0, 1)
            values[:, length:stop] = v[new].transpose(0, 1)
            output = F.scaled_dot_product_attention(
                q[new].transpose(0, 1)[None],
                keys[None, :, :stop],
                values[None, :, :stop],
                is_causal=count > 1,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            outputs.append(output[0].transpose(0, 1).flatten(1))
            start += count
        out: Tensor = attention.o_proj(torch.cat(outputs))
        return out


def _qk_norm(norm: Any, x: Tensor) -> Tensor:
    normalized = F.layer_norm(x, x.shape[-1:], None, None, 1e-5)
    return normalized * norm.weight + norm.bias


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def sample_on_host(logits: Tensor, temperature: float, top_p: float) -> int:
    """Sample a token from [V] logits with temperature and top-p, and wait for it."""
    probs, ids = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    probs = probs.masked_fill(probs.cumsum(dim=-1) - probs > top_p, 0.0)
    return int(ids[torch.multinomial(probs, 1)])


class ReleaseLoop:
    """Runs requests one after another."""

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
    def generate(self, request: BenchRequest, on_token: Callable[[], None]) -> list[int]:
        """Generate the tokens of one request; `on_token` is called for each sampled one."""
        output = OutputState(request, self.vocabulary, self.codes_per_image)
        output.start()
        while output.num_remaining > 0:
            loop = self._image if output.num_codes_remaining else self._text
            loop([*request.prompt_token_ids, *output.token_ids], output, on_token)
        return output.token_ids

    def _text(self, history: list[int], output: OutputState, on_token: Callable[[], None]) -> None:
        network = PlainNetwork(self.port, 1, len(history) + output.num_remaining)
        new, seen = history, torch.tensor(history, device=self.text_only.device)
        while output.num_remaining > 0 and not output.num_codes_remaining:
            logits = network.forward([new])[0] + self.text_only
            if not output.may_begin_image:
                logits[self.vocabulary.begin_image] = -math.inf
            old = logits[seen]
            logits[seen] = torch.where(old > 0, old / 1.2, old * 1.2)
            new = [sample_on_host(logits, 0.7, 0.9)]
            on_token()
            output.append(new[0])
            seen = torch.cat([seen, torch.tensor(new, device=seen.device)])

    def _image(self, history: list[int], output: OutputState, on_token: Callable[[], None]) -> None:
        vocabulary = self.vocabulary
        images = [i for i in history if i == vocabulary.bos or vocabulary.is_image_token(i)]
        new = [history, images, [vocabulary.bos, vocabulary.begin_image]]
        network = PlainNetwork(self.port, 3, len(history) + self.codes_per_image)
        while output.num_codes_remaining:
            cond, image_cond, uncond = network.forward(new)
            guided = uncond + 1.2 * (image_cond - uncond) + 3.0 * (cond - image_cond)
            id_ = sample_on_host(guided + self.codes_only, 0.7, 0.9)
            on_token()
            output.append(id_)
            new = [[id_]] * 3
