"""Compare the image tokenizer with transformers' `ChameleonVQVAE`, from JPEG files to codes.

    python benches/encode_images.py                    # the release's network at 512 pixels
    python benches/encode_images.py --threads 2 --images 8
    python benches/encode_images.py --precision bfloat16     # on a GPU, its quick mode
    python benches/encode_images.py --quick            # a small network, seconds

Device, batch size and compilation are what `calumma build-shards --device auto` chooses on the
machine, unless options say otherwise.

Both have the same random weights and read the same files: calumma with prefetch threads that decode
images, transformers one image at a time and in batches, with its own processor and the same
preprocessing config. Both also encode the same pixels, to report the fraction of equal codes. The
limit of the device is a matrix product in the same precision, timed between the rounds.
"""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository, when run as a script

from benches.measure import OURS, describe_machine, format_result, median_seconds, time_interleaved
from calumma.checkpoints.hf_config import preprocessor_config
from calumma.documents.document import Image
from calumma.runtime import resolve_device
from calumma.tokens.image import ENCODE_BATCH_SIZE, ImageTokenizer, image_to_pixels
from calumma.tokens.vq.config import VQConfig
from calumma.tokens.vq.network import VQModel
from calumma.tokens.vq.tensor_names import transformers_names

LIMIT = "matmul"
ONE_BY_ONE, BATCHED = "transformers", "transformers-batched"


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    config = small_config() if args.quick else VQConfig(resolution=args.resolution)
    theirs, network = build_networks(config, args.device)
    ours = ImageTokenizer(network, precision=args.precision, compiled=args.compiled)
    files = [random_jpeg(seed, config.resolution) for seed in range(args.images)]
    equal = equal_codes(ours, theirs, files[: min(4, len(files))])
    processor = build_processor(config)

    def encode_ours() -> None:
        images = ((Image(data=file), "crop") for file in files)
        for codes in ours.encode_stream(images, num_threads=args.workers, batch_size=args.batch):
            assert isinstance(codes, list)

    def encode_theirs(batch: int) -> Callable[[], None]:
        def work() -> None:
            for start in range(0, len(files), batch):
                opened = [PIL.Image.open(io.BytesIO(f)) for f in files[start : start + batch]]
                pixels = processor(opened, return_tensors="pt")["pixel_values"].to(args.device)
                with torch.inference_mode():
                    theirs.encode(pixels).image_tokens.tolist()

        return work

    product, product_flop = matmul(args.device, args.precision, 512 if args.quick else 4096)
    sides: dict[str, Callable[[], Any]] = {OURS: encode_ours, LIMIT: product}
    if not args.only_ours:
        sides |= {ONE_BY_ONE: encode_theirs(1), BATCHED: encode_theirs(args.batch)}
    cuda = args.device.startswith("cuda")
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    seconds = median_seconds(time_interleaved(sides, num_rounds=args.rounds, synchronize=synchronize))
    limit = product_flop / seconds.pop(LIMIT)
    flop = flops_per_image(config)
    measures = {name: measures_of(len(files) / s, flop, limit) for name, s in seconds.items()}
    for name, found in measures.items():
        print(f"{name:22} {found['images_per_second']:8.3f} images/s, "
              f"{found['fraction_of_limit']:.0%} of the limit")  # fmt: skip
    print(f"equal codes: {equal:.4%} of cells; {flop / 1e9:.0f} GFLOP per image")
    line = describe_machine(args.threads, args.device)
    more = {"codes_equal": equal, "gflop_per_image": flop / 1e9, "limit_gflops": limit / 1e9}
    settings = {k: v for k, v in vars(args).items() if v is not None}
    print(format_result("encode_images", measures, line, **more, settings=settings))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small network, a few images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, help="threads that decode images")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--images", type=int, help="4, or 512 on a GPU")
    parser.add_argument("--batch", type=int, help=f"at most {ENCODE_BATCH_SIZE}, the images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--only-ours", action="store_true", help="time no peer")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction)
    args = parser.parse_args()
    device = resolve_device(args.device)
    args.device = str(device)
    if args.images is None:
        args.images = 512 if device.type == "cuda" else 4
    if args.batch is None:
        args.batch = min(ENCODE_BATCH_SIZE, args.images)
    if args.compiled is None:
        args.compiled = args.precision != "float32" and device.type == "cuda"
    return args


def small_config() -> VQConfig:
    return VQConfig(resolution=128, base_channels=32, channel_multipliers=(1, 1, 2), num_codes=512,
                    num_res_blocks=1, latent_channels=32, code_dim=32)  # fmt: skip


def build_networks(config: VQConfig, device: str) -> tuple[Any, VQModel]:
    """Build transformers' network with random weights, and ours with the same weights."""
    from transformers import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    torch.manual_seed(0)
    theirs = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            resolution=config.resolution,
            base_channels=config.base_channels,
            channel_multiplier=list(config.channel_multipliers),
            num_res_blocks=config.num_res_blocks,
            latent_channels=config.latent_channels,
            embed_dim=config.code_dim,
            num_embeddings=config.num_codes,
        )
    )
    ours = VQModel(config)
    names, tensors = transformers_names(config), theirs.state_dict()
    ours.load_state_dict({name: tensors[names[name]] for name in names}, strict=False)
    return theirs.eval().to(device), ours.to(device)


def build_processor(config: VQConfig) -> Any:
    """Return transformers' processor with our preprocessing config (Pillow without torchvision)."""
    import transformers

    kind = getattr(transformers, "ChameleonImageProcessorPil", None)
    return (kind or transformers.ChameleonImageProcessor)(**preprocessor_config(config))


def random_jpeg(seed: int, resolution: int) -> bytes:
    """Return a JPEG like a photo: smooth shapes, some grain, 4:3, a fifth larger than needed."""
    generator = np.random.default_rng(seed)
    soft = PIL.Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
    soft = soft.resize((resolution * 8 // 5, resolution * 6 // 5), PIL.Image.Resampling.BICUBIC)
    grain = np.asarray(soft) + generator.normal(0, 6, np.asarray(soft).shape)
    file = io.BytesIO()
    PIL.Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def equal_codes(ours: ImageTokenizer, theirs: Any, files: list[bytes]) -> float:
    """Return the fraction of image tokens that are equal for the same pixels."""
    side = ours.config.resolution
    pixels = torch.stack([image_to_pixels(PIL.Image.open(io.BytesIO(file)), side) for file in files])
    pixels = pixels.to(ours.device)
    with torch.inference_mode():
        expected: Tensor = theirs.encode(pixels).image_tokens
    return float((ours.encode(pixels).flatten() == expected).float().mean())


def flops_per_image(config: VQConfig) -> int:
    """Count the FLOPs of the encoder and of the distances to all codes, two per multiply-add."""
    with torch.device("meta"):
        network = VQModel(config)
        pixels = torch.empty(1, 3, config.resolution, config.resolution)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.encode(pixels)
    return counter.get_total_flops()


def matmul(device: str, precision: str, side: int) -> tuple[Callable[[], Any], int]:
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, precision)) for _ in "ab")
    return lambda: a @ b, 2 * side**3


def measures_of(images_per_second: float, flop: int, limit: float) -> dict[str, float | None]:
    return {"images_per_second": images_per_second, "fraction_of_limit": images_per_second * flop / limit}


if __name__ == "__main__":
    main()
