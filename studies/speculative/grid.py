"""Still lifes on a grid of 16 x 16 codes: documents, and the shipped model with images of twice the side.

    python studies/speculative/grid.py out/grid-16
    calumma finetune runs/still-life-grid-16.toml --out out/grid-16/run

To be learned in ten minutes of one core, the scenes are simple: shapes in five colors, all of the
size of a thing in a row. Corners hold four equal shapes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from calumma.checkpoints.model_folder import load_model, save_model
from calumma.corpora.still_life import StillLife, sample_still_life
from calumma.corpora.still_life_captions import choose, make_caption
from calumma.documents.document import Document, Image, Text, Turn
from calumma.documents.writers import write_parquet
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.vq.network import VQModel

SIDE = 128
"""Side of the images in pixels."""

SIMPLE_COLORS = frozenset({"red", "green", "blue", "yellow", "white"})


def is_simple(scene: StillLife) -> bool:
    """Return whether the model learns a scene."""
    if scene.layout == "triple" or scene.size == "large" or (scene.layout == "corners" and not scene.is_count):
        return False
    return {scene.background, *(thing.color for thing in scene.things)} <= SIMPLE_COLORS


def drawing_documents(count: int, seed: int) -> Iterator[Document]:
    """Yield requests for images of training scenes, with the images."""
    for number in range(count):
        random = np.random.default_rng([seed, number, 20])
        kind = choose(random, ("single", "row", "column", "count"))
        scene = sample_still_life(random, kind)
        while not is_simple(scene):
            scene = sample_still_life(random, kind)
        request = Text(f"Draw {make_caption(scene, random, complete=True)}.")
        image = Image(data=scene.to_png(SIDE), name="a still life")
        turns = (Turn("user", (request,)), Turn("assistant", (image,)))
        yield Document(id=f"grid-{seed}-{number}", source="drawings", messages=turns)


def initial_model(out: Path) -> None:
    """Write the shipped model with images of `SIDE` pixels: its cells, four times as many."""
    shipped = load_model(Path("still-life"))
    network = shipped.tokenizers.image.network
    larger = VQModel(replace(network.config, resolution=SIDE))
    larger.load_state_dict(network.state_dict())
    save_model(out, replace(shipped, tokenizers=Tokenizers(shipped.tokenizers.text, ImageTokenizer(larger))))


def main() -> None:
    """Write the model and the documents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=9_000, metavar="N", help="documents")
    arguments = parser.parse_args()
    initial_model(arguments.out / "start")
    write_parquet(arguments.out / "documents.parquet", drawing_documents(arguments.count, seed=0))


if __name__ == "__main__":
    main()
