"""Equal short trainings of the image tokenizer, one change at a time, on real pictures of 64 px.

    python studies/image_tokenizer/study.py --pictures out/pictures --out out/study
    python studies/image_tokenizer/measure.py --pictures out/pictures --out out/study --vgg WEIGHTS

A folder a run; a run that is done is not done again, and a run that was stopped goes on. With
`--only NAME` one variant alone; `--quick` is a smoke test on a few steps.
"""

from __future__ import annotations

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
    "without revival": ["--training.codebook.revive-after-steps", "0"],
    "gradient": ["--training.codebook.update", "gradient"],
    "cosine": ["--training.codebook.quantizer", "cosine"],
    "ibq": [
        "--training.codebook.quantizer", "ibq", "--training.codebook.update", "gradient",
        "--training.codebook.entropy-weight", "0.05",
    ],
    "short warm-up": ["--training.warmup-steps", "20"],
}  # fmt: skip
"""What each variant changes of base.toml, whose codes are running means (EMA) with revival."""

QUICK = ["--training.steps", "6", "--training.quantize-start-step", "2", "--training.batch-size", "2",
         "--training.losses.disc-start-step", "4"]  # fmt: skip


def run_folder(name: str, seed: int, out: Path) -> Path:
    """Where a run of a variant lies."""
    return out / f"{name.replace(' ', '-')}-seed-{seed}"


def train_variant(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train one variant, unless that is done."""
    folder = run_folder(name, seed, args.out)
    if (folder / "image_tokenizer.json").exists():
        return
    overrides = [*VARIANTS[name], "--training.seed", str(seed), *(QUICK if args.quick else [])]
    config = load_config(ImageTokenizerRunConfig, BASE, overrides)
    documents = read_documents([args.pictures / "train.parquet"])
    train_image_tokenizer(config.training, documents, folder, checkpoint=config.checkpoint)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True, help="what pictures.py wrote")
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
