"""Train a small model on images of three aspects, and count how often it draws the aspect of the prompt.

    python studies/image_sizes/study.py out/image-sizes
    python studies/image_sizes/study.py out/image-sizes --steps 20 --documents 200 --prompts 9     a quick run

Corpus, tokenizers, shards and pre-training are those of the commands (`calumma corpus make still-lifes
--aspects ...`); the image tokenizer is that of the shipped model. No size is given in the requests of
the first table: the model chooses it from the words of the prompt, which are of held-out scenes.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.corpora.still_life import StillLife, sample_still_life
from calumma.corpora.still_life_aspects import ASPECTS, aspect_words
from calumma.corpora.still_life_captions import make_caption
from calumma.corpora.still_life_corpus import STILL_LIFES, StillLifeConfig, generate_still_lifes
from calumma.corpora.synthetic_scenes import GROUNDS
from calumma.documents.readers import read_documents
from calumma.evaluate.metric import wilson_interval
from calumma.files import write_json
from calumma.generate.model import Model, load
from calumma.generate.params import ImageSampling
from calumma.hub import SHIPPED_MODEL, find_model_folder
from calumma.shards.executors import build_local
from calumma.shards.tasks import BuildJob
from calumma.tokens.folder import Tokenizers
from calumma.tokens.text import TextTokenizer
from calumma.toml_config import build_config
from calumma.train.config import PretrainConfig
from calumma.train.pretraining import pretrain
from calumma.vocabulary import ImageSizeTokens, Vocabulary

SIDE = 32
"""Side of a square in pixels: four cells."""

SIZES = {name: f"{round(width * SIDE)}x{round(height * SIDE)}" for name, (width, height) in ASPECTS.items()}
"""Size of each aspect in pixels, by its name."""

SAMPLING = ImageSampling(temperature=0.9, top_p=0.95, guidance_scale=3.0)


def pretrain_config(out: Path, steps: int) -> PretrainConfig:
    """Return the config of a decoder of 0.6 million parameters."""
    tree: dict[str, Any] = {
        "shards": out / "shards",
        "tokenizers": out / "tokenizers",
        "steps": steps,
        "model": {
            **{"model_dim": 96, "num_layers": 3, "num_heads": 2, "num_kv_heads": 2, "feed_forward_dim": 256},
            "max_seq_len": 256,
        },
        "data": {"seq_len": 256, "global_batch_size": 8, "cond_dropout_prob": 0.1},
        "optimizer": {"name": "muon", "lr": 3e-3, "muon_lr": 0.02, "eps": 1e-8},
        "schedule": {"warmup_steps": min(20, steps - 1), "decay_type": "cosine", "min_lr_factor": 0.03},
        "stage_one": {"weights": {"still-life-pairs": 0.8, "still-life-draw": 0.2}},
        "compute": {"compile": "none"},
        "diagnostics": {"interval": 0},
    }
    return build_config(PretrainConfig, tree, "study.py")


def train(out: Path, num_documents: int, steps: int) -> Model:
    """Make documents, tokenizers and shards, train the decoder, and return the model."""
    generate_still_lifes(out, StillLifeConfig(num_documents=num_documents, side=SIDE, aspects=tuple(ASPECTS)))
    documents = out / STILL_LIFES
    image = load_model(find_model_folder(SHIPPED_MODEL)).tokenizers.image
    config = image.config
    sizes = ImageSizeTokens.parse(
        ",".join(SIZES.values()),
        Vocabulary(num_codes=config.num_codes, num_text=0).placeholder + 1,
        cell=config.downsampling,
        max_cells=config.codes_per_image,
    )
    texts = (document.text for document in read_documents([documents]))
    text = TextTokenizer.train(texts, num_text=512, num_codes=config.num_codes, image_sizes=sizes, allow_fewer=True)
    tokenizers = Tokenizers(text, image)
    tokenizers.save(out / "tokenizers")
    build_local(BuildJob(out=out / "shards", tokenizers=out / "tokenizers"), [str(documents)], 1)
    started = time.monotonic()
    decoder = pretrain(pretrain_config(out, steps), out / "run")
    assert decoder is not None, "the study is one process"
    print(f"{steps} steps in {time.monotonic() - started:.0f} s")
    save_model(out / "model", ModelComponents(decoder, tokenizers))
    return load(out / "model", device="cpu", dtype="float32")


def prompts(count: int) -> list[tuple[str, str, StillLife]]:
    """Return the aspect, the caption and the scene of prompts; a third of the squares is not named."""
    random = np.random.default_rng(7)
    made = []
    for number in range(count):
        aspect = list(ASPECTS)[number % len(ASPECTS)]
        scene = sample_still_life(random, "single", "combinations")
        words = "" if aspect == "square" and number % 9 == 0 else aspect_words("pairs", aspect)
        made.append((aspect, make_caption(scene, random) + words, scene))
    return made


def draw(model: Model, tasks: Sequence[tuple[str, str, StillLife]], *, gives_size: bool) -> dict[str, Any]:
    """Draw the prompts and count aspects and backgrounds."""
    requests = [
        model.request(
            [caption],
            add_generation_prompt=False,
            size=SIZES[aspect] if gives_size else "auto",
            seed=seed,
            image=SAMPLING,
            modality="image",
            max_images=1,
            max_new_tokens=64,
        )
        for seed, (aspect, caption, _) in enumerate(tasks)
    ]
    counts: Counter[str] = Counter()
    for (aspect, _, scene), sample in zip(tasks, model.generate_requests(requests), strict=True):
        (image,) = sample.decoded_parts
        if not isinstance(image, PIL.Image.Image):
            continue
        counts["images"] += 1
        counts["aspects"] += "{}x{}".format(*image.size) == SIZES[aspect]
        counts["backgrounds"] += _ground(image) == scene.background
    shares = {name: [counts[name], len(tasks), *wilson_interval(counts[name], len(tasks))] for name in counts}
    return {"prompts": len(tasks), **shares}


def _ground(image: PIL.Image.Image) -> str:
    """Return the background color that is closest to the median of an image's border."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color = np.median(border, axis=0)
    return min(GROUNDS, key=lambda name: float(((np.array(GROUNDS[name]) - color) ** 2).sum()))


def main() -> None:
    """Train, draw, and write `results.json` in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--documents", type=int, default=6_000)
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--prompts", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = train(args.out, args.documents, args.steps)
    tasks = prompts(args.prompts)
    results = {
        "size chosen by the model": draw(model, tasks, gives_size=False),
        "size given": draw(model, tasks, gives_size=True),
    }
    for name, found in results.items():
        print(f"{name}: {json.dumps(found)}")
    write_json(args.out / "results.json", results)


if __name__ == "__main__":
    main()
