"""Train the image tokenizer on real images of 64 px, with one change per run.

    python studies/image_tokenizer/study.py --images out/images --out out/study
    python studies/image_tokenizer/measure.py --images out/images --out out/study --vgg WEIGHTS

One folder per run; finished runs are skipped and stopped ones resumed. `--only NAME` runs one
variant; `--quick` is a smoke test.
"""

import argparse
from pathlib import Path

import torch

from calumma.documents.readers import read_documents
from calumma.toml_config import load_config
from calumma.train.config_image_tokenizer import ImageTokenizerRunConfig
from calumma.train.image_tokenizer_trainer import train_image_tokenizer

BASE = Path(__file__).parent / "base.toml"
SEEDS = (0, 1)

VARIANTS: dict[str, list[str]] = {
    "shipped": [],
    "without perceptual loss": ["--training.losses.perceptual", "none"],
    "without discriminator": ["--training.losses.disc-weight", "0.0"],
    "without restarts": ["--training.codebook.dead-code-restart-steps", "0"],
    "gradient": ["--training.codebook.update", "gradient"],
    "cosine": ["--training.codebook.quantizer", "cosine"],
    "ibq": [
        "--training.codebook.quantizer", "ibq", "--training.codebook.update", "gradient",
        "--training.codebook.entropy-weight", "0.05",
    ],
    "short warm-up": ["--training.warmup-steps", "20"],
}  # fmt: skip
"""Overrides of base.toml, which has an EMA codebook with dead-code restarts."""

QUICK = ["--training.steps", "6", "--training.quantize-start-step", "2",
         "--training.batch-size", "2", "--training.losses.disc-start-step", "4"]  # fmt: skip


def run_folder(name: str, seed: int, out: Path) -> Path:
    """Return the folder of a run."""
    return out / f"{name.replace(' ', '-')}-seed-{seed}"


def train_variant(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train one variant unless it is finished."""
    folder = run_folder(name, seed, args.out)
    if (folder / "image_tokenizer.json").exists():
        return
    overrides = [*VARIANTS[name], "--training.seed", str(seed), *(QUICK if args.quick else [])]
    config = load_config(ImageTokenizerRunConfig, BASE, overrides)
    documents = read_documents([args.images / "train.parquet"])
    train_image_tokenizer(config, documents, folder)


def main() -> None:
    """Train the missing runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="the output of images.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=VARIANTS, action="append")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seed or SEEDS:
        for name in args.only or VARIANTS:
            train_variant(name, seed, args)


if __name__ == "__main__":
    main()
