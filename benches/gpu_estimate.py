"""Estimate what `scripts/gpu-check` will measure, from counted work and assumed efficiencies.

    python benches/gpu_estimate.py                       a Markdown table for an H200
    python benches/gpu_estimate.py --gpu h100-80gb

FLOPs, bytes and cache slots are counted from the shapes. The efficiencies are assumptions of this
program, and its figures are estimates: nothing is measured.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository, when run as a script

from benches.encode_images import flops_per_image
from calumma.gpu_specs import GIB, GPU_SPECS, GpuSpec
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder, flops_per_token
from calumma.model.presets import PRESETS
from calumma.plan.time_estimate import OPTIMIZER_TRAFFIC_BYTES
from calumma.tokens.vq.config import VQConfig

PRODUCTS, ATTENTION = 0.60, 0.25
"""Fractions of the bfloat16 peak that matrix products, and attention with its backward pass, reach."""

BANDWIDTH, CACHE_BANDWIDTH = 0.85, 0.6
"""Fractions of the memory bandwidth that are reached, and that decoding attention reaches."""

STREAM_BYTES = 150
"""Bytes of elementwise kernels in a training step by layer, channel and token, without recomputation."""

KERNEL_SECONDS, KERNELS_PER_LAYER, GAP_SECONDS = 2e-6, 14, 0.02
"""Time of a small kernel in a CUDA graph, such kernels of a compiled layer, and gaps in a training step."""

FLOAT32_FLOPS = 67e12
"""Peak of an H100 or H200 in float32, without TF32."""

ENCODER_FLOAT32, ENCODER_BFLOAT16 = 0.6, 0.4
"""Fractions of the peak that the image encoder's convolutions reach."""

TEXT, CODES = 26, 1024
"""Tokens of a text prompt with its marks, and codes of an image."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", default="h200-141gb", choices=GPU_SPECS)
    gpu = GPU_SPECS[parser.parse_args().gpu]
    print(f"Estimated by `benches/gpu_estimate.py` for {gpu.name}; nothing is measured.\n")
    print("| figure | estimate |\n|---|---|")
    for name, value in estimates(gpu).items():
        print(f"| {name} | {value:,.2f} |")


def estimates(gpu: GpuSpec) -> dict[str, float]:
    """Return all figures by name."""
    small, large = PRESETS["1.5B"], PRESETS["7B"]
    text = [TEXT, 2]  # cond and uncond
    image = [CODES + TEXT, CODES + 4, 2]  # cond, image_cond and uncond
    flops = flops_per_image(VQConfig())
    found = {
        "training, 1.5B, 8 x 4,096 tokens on a GPU, MFU at best": training_mfu(small, gpu, 8, 8, recomputes=False),
        "training, 7B, 2 x 4,096 tokens on a GPU, selective, MFU at best": training_mfu(
            large, gpu, 2, 8, recomputes=True
        ),
        "7B, one guided image, seconds": decode_seconds(large, gpu, text),
        "7B, eight guided images, seconds each": decode_seconds(large, gpu, text * 8) / 8,
        "7B, eight with an image in each prompt, seconds each": decode_seconds(large, gpu, image * 8) / 8,
        "encoder, codes of a CPU (float32), images/s": ENCODER_FLOAT32 * FLOAT32_FLOPS / flops,
        "encoder, bfloat16, images/s": ENCODER_BFLOAT16 * gpu.peak_flops / flops,
    }
    cache = sum(length + CODES + 1 for length in image * 8) * cache_bytes_per_token(large) / GIB
    weights = 2 * num_parameters(large) / GIB
    found["7B, weights, GiB"] = weights
    found["7B, cache of eight with an image in each prompt, GiB"] = cache
    for other in ("h100-80gb", "h200-141gb"):
        free = 0.9 * GPU_SPECS[other].memory_gib - weights
        found[f"7B on {other}, such requests at once"] = free / (cache / 8)
    return found


def num_parameters(shape: DecoderConfig) -> int:
    """Return the number of parameters of a decoder."""
    with torch.device("meta"):
        return Decoder(shape).num_parameters


def cache_bytes_per_token(shape: DecoderConfig) -> int:
    """Return the bytes of a token's keys and values in bfloat16."""
    return 2 * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim


def training_mfu(shape: DecoderConfig, gpu: GpuSpec, rows: int, num_gpus: int, *, recomputes: bool) -> float:
    """Return the model FLOPs utilization of a step with rows of four documents of 1,024 tokens."""
    tokens, length = rows * 4096, 1024
    products = flops_per_token(shape, 0) * tokens / (PRODUCTS * gpu.peak_flops)
    attended = (flops_per_token(shape, length / 2) - flops_per_token(shape, 0)) * tokens
    stream = STREAM_BYTES * shape.num_layers * shape.model_dim * tokens * (1.5 if recomputes else 1.0)
    optimizer = OPTIMIZER_TRAFFIC_BYTES * num_parameters(shape) / num_gpus
    seconds = products + attended / (ATTENTION * gpu.peak_flops) + GAP_SECONDS
    seconds += (stream + optimizer) / (BANDWIDTH * gpu.memory_bandwidth)
    seconds *= 1.05  # collectives take some of the GPU's units
    return flops_per_token(shape, 4096) * tokens / gpu.peak_flops / seconds


def decode_seconds(shape: DecoderConfig, gpu: GpuSpec, prompts: list[int]) -> float:
    """Return the seconds to decode an image of each request, whose sequences have these prompts."""
    in_blocks = num_parameters(shape) - 2 * shape.vocabulary_size * shape.model_dim
    read = 2 * (in_blocks + 8192 * shape.model_dim)  # weights, and the head's rows of the codes
    cache = sum(length + CODES / 2 for length in prompts) * cache_bytes_per_token(shape)
    step = (read / BANDWIDTH + cache / CACHE_BANDWIDTH) / gpu.memory_bandwidth
    return CODES * (step + KERNEL_SECONDS * KERNELS_PER_LAYER * shape.num_layers)


if __name__ == "__main__":
    main()
