"""Build the images of the study, 64 px: photographs and drawings, training and held-out sets.

    calumma corpus fetch endless-sky-planets fluent-3d openclipart tuxpaint --out corpora
    python studies/image_tokenizer/images.py --corpora corpora --out out/images

Writes OUT/train.parquet, OUT/held_out.parquet and OUT/counts.json. Photographs are cut into tiles;
nearly blank drawings and most skin tones are dropped, and no image is in both sets.
"""

import argparse
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from calumma.documents.document import Document, Image
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_parquet
from calumma.files import write_json
from calumma.tokens.image_preprocessing import image_to_array, to_rgb

SIDE = 64
TILE = 112
"""Side in pixels of a tile of a photograph."""

MAX_IMAGES = {"openclipart": 3500}
"""Maximum images of a corpus, so that line drawings do not outnumber the photographs."""

HELD_OUT_INTERVAL = 12
"""One image in 12 is held out, with all tiles of the same photograph."""

MIN_STANDARD_DEVIATION = 12.0
"""Minimum standard deviation of the values, 0 to 255; a drawing below it is nearly blank."""

CORPORA = ("endless-sky-planets", "fluent-3d", "openclipart", "tuxpaint")


def crop_tiles(image: PIL.Image.Image) -> Iterator[PIL.Image.Image]:
    """Yield square crops of a photograph: the two ends, and a grid of tiles."""
    image = to_rgb(image)
    width, height = image.size
    side = min(width, height)
    yield image.crop((0, 0, side, side))
    yield image.crop((width - side, 0, width, side))
    for top in range(0, height - TILE + 1, TILE):
        for left in range(0, width - TILE + 1, TILE):
            yield image.crop((left, top, left + TILE, top + TILE))


def resize_to_png(image: PIL.Image.Image) -> tuple[bytes, float]:
    """Return an image as PNG of SIDE pixels, and the standard deviation of its values."""
    values = image_to_array(image, SIDE, "pad").transpose(1, 2, 0)
    file = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(values)).save(file, "PNG")
    return file.getvalue(), float(values.std())


def study_images(corpora: Path) -> Iterator[tuple[str, Document]]:
    """Yield each image with the hash that decides whether it is held out."""
    seen: set[str] = set()
    for corpus in CORPORA:
        num_used = 0
        for document in read_documents([corpora / corpus]):
            if "skin tone" in document.text or num_used >= MAX_IMAGES.get(corpus, 10_000):
                continue
            (image,) = document.images
            name = hashlib.sha256(image.read_bytes()).hexdigest()
            if name in seen:
                continue
            seen.add(name)
            opened = image.open()
            photograph = corpus == "endless-sky-planets"
            for number, tile in enumerate(crop_tiles(opened) if photograph else [opened]):
                data, deviation = resize_to_png(tile)
                if deviation >= MIN_STANDARD_DEVIATION:
                    num_used += 1
                    yield (
                        name,
                        Document(
                            id=f"{document.id}/{number}",
                            source=corpus,
                            license=document.license,
                            content=(Image(data=data),),
                            attributes={"photograph": document.attributes.get("photograph", "")},
                        ),
                    )


def main() -> None:
    """Write both sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sets: dict[str, list[Document]] = {"train": [], "held_out": []}
    for name, document in study_images(args.corpora):
        held_out = int(name[:8], 16) % HELD_OUT_INTERVAL == 0
        sets["held_out" if held_out else "train"].append(document)
    counts = {name: Counter(d.source for d in found) for name, found in sets.items()}
    for name, found in sets.items():
        write_parquet(args.out / f"{name}.parquet", found)
    write_json(args.out / "counts.json", counts)
    print(counts)


if __name__ == "__main__":
    main()
