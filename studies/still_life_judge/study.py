"""Confusion tables of the judge of still lifes, on true images and on reconstructed ones.

    python studies/still_life_judge/study.py
    python studies/still_life_judge/study.py out/evening/model --num-scenes 4000

Renders scenes of the training split, reads them, encodes and decodes them with the image tokenizer
of a model (the package's by default), reads them again, and prints both tables as Markdown.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a file, it finds the other modules too

import calumma
from benches.measure import describe_machine
from calumma.corpora.still_life import StillLife, sample_still_life
from calumma.evaluate.still_life_judge import JudgeErrors, measure_judge
from calumma.hub import SHIPPED_MODEL
from calumma.tokens.image import ImageTokenizer

_BATCH = 100


def sample_scenes(num_scenes: int, seed: int) -> list[StillLife]:
    """Sample scenes of all layouts."""
    random = np.random.default_rng([seed, 500])
    return [sample_still_life(random) for _ in range(num_scenes)]


def measure_reconstructed(scenes: list[StillLife], tokenizer: ImageTokenizer) -> JudgeErrors:
    """Read reconstructions of scenes."""
    images = []
    for start in range(0, len(scenes), _BATCH):
        rendered = [scene.render() for scene in scenes[start : start + _BATCH]]
        images += [tokenizer.decode_image(codes) for codes in tokenizer.encode_images(rendered)]
    return measure_judge(zip(scenes, images, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=SHIPPED_MODEL)
    parser.add_argument("--num-scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = calumma.load(args.model).image
    scenes = sample_scenes(args.num_scenes, args.seed)
    print("## True images\n")
    print(measure_judge((scene, scene.render()) for scene in scenes).to_markdown())
    print("## Reconstructed images\n")
    print(measure_reconstructed(scenes, tokenizer).to_markdown())
    print(describe_machine())


if __name__ == "__main__":
    main()
