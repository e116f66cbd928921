"""The decoder over vLLM's parallel layers: Llama's, with QK-norm and both orders of norms.

Tensor and pipeline parallelism, quantization, LoRA and compilation are those of vLLM's Llama.

Shapes: T tokens, H heads of this rank, D head_dim, M model_dim.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.utils import set_weight_attrs

from calumma.checkpoints.hf_qwen3 import CALUMMA_TYPE
from calumma.checkpoints.hf_weights import VQ_PREFIX
from calumma.checkpoints.model_folder import DOWNWARD_HEAD_PREFIX
from calumma.model.qk_norm import LAYER_NORM_EPSILON

_IMAGE_DECODER_PREFIXES = ("decoder.", "post_quant_conv.")
"""Tensors of `vq_decoder.safetensors`: vLLM reads every safetensors file of the folder."""


class ParallelQKNorm(nn.Module):
    """QK-norm of the heads of this rank, with parameters of their own for each of them.

    A folder has parameters for each head, for each group of heads, or for all heads.
    """

    def __init__(self, num_heads: int, head_dim: int, kind: str, epsilon: float) -> None:
        super().__init__()
        num_ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        self.num_heads, self.head_dim, self.kind = num_heads, head_dim, kind
        # With fewer heads than ranks, several ranks have the same one.
        self.num_local_heads = max(1, num_heads // num_ranks)
        self.first_head = rank * num_heads // num_ranks
        self.epsilon = LAYER_NORM_EPSILON if kind == "layer" else epsilon
        self.weight = nn.Parameter(torch.ones(self.num_local_heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(self.num_local_heads, head_dim)) if kind == "layer" else None
        for parameter in self.parameters():
            set_weight_attrs(parameter, {"weight_loader": self._load_weight})

    def _load_weight(self, parameter: Tensor, loaded: Tensor) -> None:
        """Copy the rows of this rank's heads, of a tensor with one row for each group."""
        groups = loaded.reshape(-1, self.head_dim)
        heads = groups.repeat_interleave(self.num_heads // len(groups), dim=0)
        parameter.data.copy_(heads[self.first_head : self.first_head + self.num_local_heads])

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each head: [T, H * D] to the same."""
        heads = x.unflatten(-1, (self.num_local_heads, self.head_dim))
        if self.bias is None:
            normalized = F.rms_norm(heads, (self.head_dim,), None, self.epsilon) * self.weight
        else:
            normalized = F.layer_norm(heads, (self.head_dim,), None, None, self.epsilon) * self.weight + self.bias
        return normalized.flatten(-2)


class ChameleonAttention(LlamaAttention):
    """Grouped-query attention with QK-norm."""

    def __init__(self, config: Any, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        kind = config.qk_norm if config.model_type == CALUMMA_TYPE else "layer"
        epsilon = config.rms_norm_eps
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if kind != "none":
            self.q_norm = ParallelQKNorm(self.total_num_heads, self.head_dim, kind, epsilon)
            self.k_norm = ParallelQKNorm(self.total_num_kv_heads, self.head_dim, kind, epsilon)

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """Mix the tokens: positions [T] and [T, M] to [T, M]."""
        qkv, _ = self.qkv_proj(hidden_states)
        query, key, value = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        query, key = self.rotary_emb(positions, self.q_norm(query), self.k_norm(key))
        output, _ = self.o_proj(self.attn(query, key, value))
        return output


class ChameleonDecoderLayer(LlamaDecoderLayer):
    """A block with its norms before the branches, or on their outputs."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix, attn_layer_type=ChameleonAttention)
        config = vllm_config.model_config.hf_config
        is_calumma = config.model_type == CALUMMA_TYPE
        self.is_reordered = config.norm_order == "reordered" if is_calumma else config.swin_norm

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the last branch and the residual stream, [T, M] each, which the next block adds."""
        if not self.is_reordered:
            return super().forward(positions, hidden_states, residual)
        x = hidden_states if residual is None else hidden_states + residual
        x = x + self.input_layernorm(self.self_attn(positions=positions, hidden_states=x))
        return self.post_attention_layernorm(self.mlp(x)), x


class ChameleonForCausalLM(LlamaForCausalLM):
    """A decoder of the Chameleon family, whose head has the logits of all tokens, image codes too."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=ChameleonDecoderLayer)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the decoder's tensors; those of image tokenizer and downward head are not vLLM's."""
        skipped = (VQ_PREFIX, DOWNWARD_HEAD_PREFIX, *_IMAGE_DECODER_PREFIXES)
        return super().load_weights((name, tensor) for name, tensor in weights if not name.startswith(skipped))
