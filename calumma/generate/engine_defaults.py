"""What an engine does on its device where the configuration leaves it open.

On a GPU: CUDA graphs, compiled blocks, async scheduling, and a KV cache of the free memory.
"""

from dataclasses import replace
from importlib.util import find_spec

import torch

from calumma.errors import GenerationError
from calumma.generate.params import EngineConfig
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.varlen_attention import has_flash_kernel

CPU_CACHED_TOKENS = 16_384
"""Capacity of the KV cache on a CPU, where pages that are never written take no memory."""


def resolve_engine_config(config: EngineConfig, decoder: Decoder, *, has_adapters: bool = False) -> EngineConfig:
    """Return the configuration with every open field decided for the decoder's device.

    With adapters, which differ from step to step, no CUDA graph is captured and nothing compiled.
    Call it after the weights are on the device: the KV cache takes what they leave.

    Raises:
        GenerationError: the GPU has no memory left for the KV cache; or CUDA graphs or compiled
            blocks are asked for with adapters.
    """
    if has_adapters and (config.cuda_graphs or config.compile):
        raise GenerationError(
            f"cuda_graphs={config.cuda_graphs} and compile={config.compile} with adapters; expected neither. Leave "
            "them out, or merge one adapter into the model with adapter=."
        )
    weight = decoder.embedding.weight
    is_cuda, is_sharded = weight.device.type == "cuda", decoder.tp_size > 1
    max_cached_tokens = config.max_cached_tokens
    if max_cached_tokens is None:
        max_cached_tokens = CPU_CACHED_TOKENS
        if is_cuda:
            max_cached_tokens = gpu_cache_capacity(
                config, decoder.config, weight.dtype, weight.device, tp_size=decoder.tp_size
            )
    is_single_gpu = is_cuda and not is_sharded and not has_adapters
    has_graphs = is_single_gpu and has_flash_kernel(weight.device, weight.dtype, decoder.config.head_dim)
    return replace(
        config,
        max_cached_tokens=max_cached_tokens,
        cuda_graphs=has_graphs if config.cuda_graphs is None else config.cuda_graphs,
        # The compiler needs Triton on a GPU.
        compile=is_single_gpu and find_spec("triton") is not None if config.compile is None else config.compile,
        async_scheduling=is_cuda if config.async_scheduling is None else config.async_scheduling,
    )


def gpu_cache_capacity(
    config: EngineConfig, shape: DecoderConfig, dtype: torch.dtype, device: torch.device, *, tp_size: int = 1
) -> int:
    """Return the number of tokens whose KV cache fits into a GPU's free memory.

    `gpu_memory_utilization` of the GPU's memory may be in use with it; the rest is for activations
    and CUDA graphs. No more is taken than `max_num_seqs` sequences of the context length fill.

    Raises:
        GenerationError: not even one sequence of the context length fits.
    """
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    budget = free - (1 - config.gpu_memory_utilization) * total
    heads = shape.num_kv_heads // tp_size
    bytes_per_token = 2 * shape.num_layers * heads * shape.head_dim * dtype.itemsize
    capacity = min(int(budget // bytes_per_token), config.max_num_seqs * shape.max_seq_len)
    if capacity < shape.max_seq_len:
        raise GenerationError(
            f"the GPU has {free / 2**30:.1f} GiB of {total / 2**30:.1f} GiB free, which leaves a KV cache of "
            f"{max(0, capacity):,} tokens; expected at least {shape.max_seq_len:,}, one context. Raise "
            "gpu_memory_utilization, set max_cached_tokens, or quantize the weights."
        )
    return capacity
