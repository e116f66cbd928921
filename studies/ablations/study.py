"""Train small decoders on still lifes with one change per run, and read what they draw and name.

    python studies/ablations/study.py --out out/ablations --dry              the command of every run
    python studies/ablations/study.py --out out/ablations                    the runs
    python studies/ablations/study.py --out out/ablations --only order scale
    python studies/ablations/report.py --out out/ablations                   tables and figures

Every run is `base.toml` with the options of its variant, so `calumma pretrain` repeats it. Finished
runs are skipped and stopped ones resumed. `--quick` is a smoke test.
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calumma.checkpoints.model_folder import ModelComponents, load_model
from calumma.checkpoints.sampling_params import SamplingOptions
from calumma.corpora.still_life import StillLife
from calumma.demo.config import load_demo_config
from calumma.demo.scene_metrics import drawing_metrics, naming_metrics
from calumma.demo.scenes import DESCRIBE_PROMPT, SceneRenderer, draw_prompt, limit_scenes, load_scenes, scene_caption
from calumma.documents.document import Document, Image, Text, Turn
from calumma.documents.writers import write_parquet
from calumma.errors import TrainingError
from calumma.evaluate.captioning import generate_captions
from calumma.evaluate.color_accuracy import generate_images
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.likelihood import BITS_PER_NAT
from calumma.evaluate.metric import Metric
from calumma.evaluate.still_life_judge import read_still_life
from calumma.files import write_json
from calumma.generate.loglikelihood import token_logprobs
from calumma.generate.model import Model
from calumma.hub import shipped_model_folder
from calumma.shards.executors import build_local
from calumma.shards.tasks import BuildJob
from calumma.tokens.folder import Tokenizers
from calumma.tokens.sequence import encode_document
from calumma.tokens.text import TextTokenizer
from calumma.toml_config import load_config
from calumma.train.config import PretrainConfig
from calumma.train.pretraining import pretrain
from calumma.train.run_log import read_metrics
from calumma.train.stability import LoggedMetrics

BASE = Path(__file__).parent / "base.toml"

BOTH, DESCRIBE, DRAW = "{describe = 0.5, draw = 0.5}", "{describe = 1.0}", "{draw = 1.0}"
_LONG = ["--steps", "480"]
_LATE = ["--stage-two-fraction", "0.4", "--stage-two.weights", BOTH]
_MIXED = ["--stage-one.weights", "{pairs = 0.6, describe = 0.2, draw = 0.2}"]
_SHORT = ["--steps", "120", "--schedule.min-lr-factor", "1.0", "--stability.max-rollbacks", "0"]
LR_FACTORS = (1, 10)
_NORMS = {
    "both": [],
    "no z-loss": ["--z-loss-weight", "0.0"],
    "no QK-norm": ["--model.qk-norm", "none"],
    "neither": ["--z-loss-weight", "0.0", "--model.qk-norm", "none"],
}
SIZES = {
    "0.5M": "--model.model-dim 80 --model.num-layers 3 --model.num-heads 2 --model.num-kv-heads 2 "
    "--model.feed-forward-dim 208",
    "2M": "",
    "8M": "--model.model-dim 320 --model.num-layers 6 --model.num-heads 5 --model.num-kv-heads 5 "
    "--model.feed-forward-dim 832",
}
BUDGETS = (60, 120, 240)
"""Steps of 1,024 tokens."""

ORDERS = (0, 40, 70, 100)
"""Percentages of pairs with the image first in the runs of the group "order"."""

BASELINE = "pairs"
"""The run without options, a row of two groups."""


def _high_lr(factor: int) -> list[str]:
    return ["--optimizer.lr", f"{3e-3 * factor:g}", "--optimizer.muon-lr", f"{0.02 * factor:g}"]


def scale_name(size: str, steps: int) -> str:
    """Return the name of a run of the group "scale"."""
    return BASELINE if (size, steps) == ("2M", BUDGETS[-1]) else f"{size} {steps} steps"


GROUPS: dict[str, dict[str, list[str]]] = {
    "fusion": {
        "both in one model": ["--stage-one.weights", BOTH],
        "captions only": ["--stage-one.weights", DESCRIBE],
        "images only": ["--stage-one.weights", DRAW],
        "captions only, half": ["--stage-one.weights", DESCRIBE, "--steps", "120"],
        "images only, half": ["--stage-one.weights", DRAW, "--steps", "120"],
    },
    "order": {
        "image first 0": ["--data.image-first-prob", "0.0"],
        BASELINE: [],
        "image first 0.7": ["--data.image-first-prob", "0.7"],
        "image first 1": ["--data.image-first-prob", "1.0"],
    },
    "stages": {
        "pairs, long": _LONG,
        "conversations late": [*_LONG, *_LATE],
        "conversations from the start": [*_LONG, *_MIXED],
    },
    "stability": {
        f"{name}, lr x {factor}": [*_SHORT, *_high_lr(factor), *options]
        for factor in LR_FACTORS
        for name, options in _NORMS.items()
    },
    "scale": {
        scale_name(size, steps): [*options.split(), *([] if steps == BUDGETS[-1] else ["--steps", str(steps)])]
        for size, options in SIZES.items()
        for steps in BUDGETS
    },
}
"""Options of each run by its name, in groups."""

QUICK = [
    *("--steps", "4", "--schedule.warmup-steps", "1", "--model.model-dim", "32", "--model.num-layers", "1"),
    *("--model.num-heads", "2", "--model.num-kv-heads", "2", "--model.feed-forward-dim", "64"),
]

CURVE_INTERVAL = 10
"""Steps whose mean is one point of a run's curve."""

_WARMUP_STEPS = 20
_TAIL = 25
"""Last steps whose mean is a run's final training loss."""


@dataclass(frozen=True)
class Study:
    """The folder of the study and its sizes."""

    out: Path
    num_prompts: int = 120
    max_scenes: int = 0
    quick: bool = False

    def options(self, name: str, seed: int) -> list[str]:
        """Return the options of `calumma pretrain` for a run."""
        variant = next(group[name] for group in GROUPS.values() if name in group)
        folders = ["--shards", str(self.out / "shards"), "--tokenizers", str(self.out / "tokenizers")]
        seeds = ["--seed", str(seed), "--data.seed", str(seed)] if seed else []
        return [*folders, *variant, *seeds, *(QUICK if self.quick else [])]

    def folder(self, name: str, seed: int) -> Path:
        """Return the folder of a run."""
        return self.out / "runs" / f"{name.replace(',', '').replace(' ', '-')}-{seed}"

    def prepare(self) -> None:
        """Write documents and both tokenizers, and build the shards, unless they are finished."""
        if (self.out / "shards" / "manifest.json").is_file():
            return
        scenes = limit_scenes(load_scenes(), self.max_scenes).train
        documents = [document for scene in scenes for document in scene_documents(scene, SceneRenderer())]
        write_parquet(self.out / "documents.parquet", documents)
        image = load_model(shipped_model_folder()).tokenizers.image
        texts = (document.text for document in documents)
        text = TextTokenizer.train(texts, num_text=512, num_codes=image.config.num_codes, allow_fewer=True)
        Tokenizers(text, image).save(self.out / "tokenizers")
        build_local(
            BuildJob(out=self.out / "shards", tokenizers=self.out / "tokenizers"), [self.out / "documents.parquet"], 1
        )

    def run(self, name: str, seed: int) -> None:
        """Train and measure a run unless it is finished."""
        folder = self.folder(name, seed)
        if (folder / "result.json").is_file():
            return
        config = load_config(PretrainConfig, BASE, self.options(name, seed))
        result: dict[str, Any] = {}
        try:
            decoder = pretrain(config, folder / "run")
            assert decoder is not None, "the study is one process"
            sampling = load_demo_config()
            options = SamplingOptions(text=sampling.text_sampling, image=sampling.image_sampling)
            model = Model(ModelComponents(decoder, Tokenizers.load(config.tokenizers), options))
            result = {"parameters": decoder.num_parameters, **measure(model, sources(config), self.num_prompts)}
        except TrainingError as error:  # of a run that diverges until no gradient is finite
            result = {"stopped": str(error)}
        write_json(folder / "result.json", {**result, **training_summary(list(read_metrics(folder / "run")))})
        print(f"{name}, seed {seed}", flush=True)


def scene_documents(scene: StillLife, renderer: SceneRenderer) -> Iterator[Document]:
    """Yield a scene as a pair, as a description of its image, and as a request for it."""
    pair, caption, image = renderer.pair(scene), Text(scene_caption(scene)), renderer.image(scene)
    yield replace(pair, id=f"pairs/{caption.text}", source="pairs")
    yield _turn("describe", (image, Text(DESCRIBE_PROMPT)), caption)
    yield _turn("draw", (Text(draw_prompt(caption.text)),), image, caption.text)


def _turn(kind: str, prompt: tuple[Text | Image, ...], answer: Text | Image, name: str = "") -> Document:
    name = name or (answer.text if isinstance(answer, Text) else "")
    return Document(id=f"{kind}/{name}", source=kind, messages=(Turn("user", prompt), Turn("assistant", (answer,))))


def sources(config: PretrainConfig) -> set[str]:
    """Return the sources of both stages."""
    return set(config.stage_one.weights) | set(config.stage_two_weights)


def measure(model: Model, trained_on: set[str], num_prompts: int) -> dict[str, Any]:
    """Measure held-out scenes in the formats of the training documents.

    Args:
        model: the trained model.
        trained_on: sources of its documents.
        num_prompts: scenes to draw and to name.

    Returns:
        By format ("plain", "chat"): bits per token of each modality given the other, and the shares
        of things that are drawn and named right, each as hits, number and interval.
    """
    scenes = load_scenes().held_out[:num_prompts]
    renderer = SceneRenderer()
    context = EvalContext(model, [renderer.pair(scene) for scene in scenes])
    captions = [pair.text for pair in context.pairs]
    turns = [list(scene_documents(scene, renderer)) for scene in scenes]
    formats = {
        "plain": (EvalConfig(), {"image": "pairs", "text": "pairs"}),
        "chat": (
            EvalConfig(chat_template=True, caption_question=DESCRIBE_PROMPT),
            {"image": "draw", "text": "describe"},
        ),
    }
    results: dict[str, Any] = {}
    for name, (config, source_of) in formats.items():
        found: dict[str, Any] = {}
        if source_of["image"] in trained_on:
            drawn = [read_still_life(image).scene for image in generate_images(model, captions, config)]
            found |= _shares(drawing_metrics(scenes, {"": drawn, "another": [drawn[-1], *drawn[:-1]]}))
            documents = [each[2] if name == "chat" else each[0] for each in turns]
            found["image_bits"] = answer_bits(context, documents, model.vocabulary.codes)
        if source_of["text"] in trained_on:
            texts = generate_captions(context, context.pairs, config)
            found |= _shares(naming_metrics(scenes, {"": texts, "another": [texts[-1], *texts[:-1]]}))
            reversed_pairs = [replace(each[0], content=each[0].content[::-1]) for each in turns]
            documents = [each[1] for each in turns] if name == "chat" else reversed_pairs
            found["text_bits"] = answer_bits(context, documents, model.vocabulary.text)
        if found:
            results[name] = found
    return results


def _shares(metrics: Sequence[Metric]) -> dict[str, Any]:
    return {m.name: {"value": m.value, "n": m.n, "interval": m.interval, "chance": m.baseline} for m in metrics}


def answer_bits(context: EvalContext, documents: Sequence[Document], ids: range) -> float:
    """Return the bits per token of those tokens of the loss mask whose ids are in a range."""
    sequences = [
        encode_document(document, context.model.text, codes)
        for document, codes in zip(documents, context.codes, strict=True)
    ]
    scored = token_logprobs(context.model.decoder, [sequence.token_ids for sequence in sequences])
    bits, count = 0.0, 0
    for sequence, logprobs in zip(sequences, scored, strict=True):
        token_ids, mask = np.array(sequence.token_ids), np.array(sequence.loss_mask)
        mask &= (token_ids >= ids.start) & (token_ids < ids.stop)
        bits -= float(logprobs[mask].sum() * BITS_PER_NAT)
        count += int(mask.sum())
    return bits / count


def training_summary(metrics: Sequence[LoggedMetrics]) -> dict[str, Any]:
    """Return totals of a run's metrics, maxima after the warm-up, and curves.

    A point of a curve is the mean of `CURVE_INTERVAL` steps.
    """
    summary: dict[str, Any] = {
        "steps": len(metrics),
        "tokens": sum(step["num_tokens"] or 0 for step in metrics),
        "seconds": sum(step["step_seconds"] or 0.0 for step in metrics),
    }
    for name in ("grad_norm", "output_norm", "max_attention_logit", "log_z"):
        values = [step[name] for step in metrics[_WARMUP_STEPS:] if step.get(name) is not None]
        summary[f"max_{name.removeprefix('max_')}"] = max(values, default=None)
    summary["loss"] = float(np.mean([step["loss"] for step in metrics[-_TAIL:]]))
    summary["skipped"] = sum(int(step.get("step_skipped") or 0) for step in metrics)
    for name in ("loss", "loss_text", "loss_image"):
        chunks = [metrics[start : start + CURVE_INTERVAL] for start in range(0, len(metrics), CURVE_INTERVAL)]
        values = [[step[name] for step in chunk if step.get(name) is not None] for chunk in chunks]
        summary[f"curve_{name}"] = [round(float(np.mean(value)), 4) if value else None for value in values]
    return summary


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dry", action="store_true", help="print the commands and stop")
    parser.add_argument("--quick", action="store_true", help="tiny models, a smoke test")
    args = parser.parse_args()
    study = Study(args.out, 4, 24, quick=True) if args.quick else Study(args.out)
    names = list(dict.fromkeys(name for group in args.only for name in GROUPS[group]))
    if args.dry:
        for seed in args.seeds:
            for name in names:
                words = ["calumma", "pretrain", str(BASE), "--out", str(study.folder(name, seed) / "run")]
                print(f"# {name}, seed {seed}\n{shlex.join([*words, *study.options(name, seed)])}")
        return
    torch.set_num_threads(1)
    study.prepare()
    for seed in args.seeds:
        for name in names:
            study.run(name, seed)


if __name__ == "__main__":
    main()
