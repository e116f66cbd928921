"""Measure peak memory and time of conversions between checkpoint layouts.

    python benches/convert.py            a random model of 1.1 GB in files of 250 MB
    python benches/convert.py --wide     one layer of the 34B model, 3.5 GB
    python benches/convert.py --quick    a small model, one conversion

Every conversion runs in its own process: `calumma convert`, and as the peer "direct" a script that
loads all tensors at once. The peak memory is reported without the peak of a tiny conversion
(interpreter and libraries); pages of mapped files are included, as the operating system does.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository, when run as a script

from benches.measure import OURS, child_peak_memory_bytes, describe_machine, format_result
from calumma.checkpoints.lazy_tensor import LazyModel, LazyTensor, Shape, decoder_tensor_shapes, vq_tensor_shapes
from calumma.checkpoints.model_folder import write_model
from calumma.model.config import DecoderConfig
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig

DIRECT = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
source, out = Path(sys.argv[1]), Path(sys.argv[2])
tensors = {}
for path in sorted(source.glob("model*.safetensors")):
    tensors |= load_file(path)
for number, path in enumerate(sorted(source.glob("models/*/consolidated*.pth"))):
    shard = torch.load(path, weights_only=True)
    tensors |= {f"{number}.{name}": tensor for name, tensor in shard.items()}
out.mkdir()
if sys.argv[3] == "meta":
    torch.save(tensors, out / "consolidated.pth")
else:
    save_file(tensors, out / "model.safetensors")
"""
"""A minimal conversion in memory: read all tensors, change nothing, write all."""


@dataclass(frozen=True)
class Route:
    """One conversion, from an earlier folder to a new one."""

    name: str
    source: str
    options: Sequence[str]


ROUTES = (
    Route("folder_to_folder", "folder", ("--to", "calumma", "--max-shard-size", "{size}")),
    Route("folder_to_one_file", "folder", ("--to", "calumma")),
    Route("folder_to_meta_4", "folder", ("--to", "meta", "--shards", "4")),
    Route("meta_4_to_folder", "folder_to_meta_4", ("--to", "calumma", "--max-shard-size", "{size}")),
)


def write_random(folder: Path, config: DecoderConfig, max_shard_bytes: int) -> None:
    """Write a model folder of random bfloat16 weights, one tensor at a time."""
    text = TextTokenizer.train(["a red circle on a blue ground"] * 4, num_text=260, num_codes=16)
    image = VQConfig(resolution=16, base_channels=32, channel_multipliers=(1, 1), num_codes=16, code_dim=4)
    model = LazyModel(
        layout="random",
        decoder_config=config,
        decoder_tensors={name: _random_tensor(shape) for name, shape in decoder_tensor_shapes(config).items()},
        vq_config=image,
        vq_tensors={name: _random_tensor(shape) for name, shape in vq_tensor_shapes(image).items()},
        tokenizer_json=text.tokenizer.to_str(),
        text_tokenizer=text,
    )
    write_model(folder, model, max_shard_bytes=max_shard_bytes)


def _random_tensor(shape: Shape) -> LazyTensor:
    return LazyTensor(shape, torch.bfloat16, partial(_sample, shape))


def _sample(shape: Shape) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).normal_()


def decoder_of_size(size: str) -> tuple[DecoderConfig, int]:
    """Return the decoder config and the maximum shard size in bytes."""
    width, layers, max_shard_bytes = {
        "quick": (128, 8, 1_000_000),
        "usual": (2048, 8, 250_000_000),
        "wide": (8192, 1, 5_000_000_000),
    }[size]
    config = DecoderConfig(
        vocabulary_size=65_536 if size == "wide" else width * 16,
        model_dim=width,
        num_layers=layers,
        num_heads=64 if size == "wide" else 16,
        num_kv_heads=8,
        feed_forward_dim=22_016 if size == "wide" else width * 11 // 4,
        max_seq_len=4096,
        qk_norm_groups=4,
    )
    return config, max_shard_bytes


def largest_file(*folders: Path) -> int:
    """Return the size in bytes of the largest weight file."""
    kinds = ("*.safetensors", "*.pth")
    files = (path for folder in folders for kind in kinds for path in folder.rglob(kind))
    return max(path.stat().st_size for path in files)


def measure(kind: str) -> dict[str, Any]:
    """Run all conversions and return the measures of both sides and the sizes."""
    config, size = decoder_of_size(kind)
    quick = kind == "quick"
    ours: dict[str, float] = {}
    direct: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_random(root / "folder", config, size)
        write_random(root / "tiny", decoder_of_size("quick")[0], size)
        tiny = Route("tiny_out", "tiny", ("--to", "calumma"))
        baselines = [0, 0] if quick else [child_peak_memory_bytes(c) for c in _commands(tiny, root, size)]
        for route in ROUTES[: 1 if quick else None]:
            converting, loading = _commands(route, root, size)
            source, out = root / route.source, root / route.name
            started = time.perf_counter()
            peak = child_peak_memory_bytes(converting) - baselines[0]
            ours[f"{route.name}_seconds"] = round(time.perf_counter() - started, 1)
            ours[f"{route.name}_peak_memory_bytes"] = peak
            ours[f"{route.name}_peak_over_largest_file"] = peak / largest_file(source, out)
            if not quick:
                peak = child_peak_memory_bytes(loading) - baselines[1]
                direct[f"{route.name}_peak_memory_bytes"] = peak
    model_bytes = sum(torch.Size(shape).numel() for shape in decoder_tensor_shapes(config).values()) * 2
    return {"ours": ours, "direct": direct, "model_bytes": model_bytes, "file_bytes": size}


def _commands(route: Route, root: Path, size: int) -> tuple[list[str], list[str]]:
    """Return the commands of both sides."""
    source, out = str(root / route.source), str(root / route.name)
    options = [option.format(size=size) for option in route.options]
    ours = [sys.executable, "-m", "calumma", "convert", source, out, *options]
    return ours, [sys.executable, "-c", DIRECT, source, f"{out}_direct", options[1]]


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description="Peak memory and time of conversions.")
    sizes = parser.add_mutually_exclusive_group()
    for name in ("quick", "wide"):
        sizes.add_argument(f"--{name}", action="store_const", const=name, dest="size")
    results = measure(parser.parse_args().size or "usual")
    for name, value in results["ours"].items():
        print(f"{name:<44}{value:>16,.2f}")
    sides = {OURS: results["ours"]} | ({"direct": results["direct"]} if results["direct"] else {})
    sizes_in_bytes = {"model_bytes": results["model_bytes"], "file_bytes": results["file_bytes"]}
    print(format_result("convert", sides, describe_machine(), **sizes_in_bytes))


if __name__ == "__main__":
    main()
