"""Run the paper's stability ablations on a small decoder with high learning rates.

    python studies/stability/study.py --out out/stability     builds its shards, then runs
    python studies/stability/report.py --out out/stability    table and curves

`--shards out/demo/shards` uses the shards of the demo, which are the same.

Each run writes one JSON Lines file with one line per step; finished runs are skipped, so the same
command resumes the study. `--quick` is a smoke test.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calumma.batches.batch import Batch
from calumma.batches.loader import DataConfig, PackedLoader
from calumma.checkpoints.model_folder import load_model
from calumma.demo.config import load_demo_config
from calumma.demo.scenes import SceneRenderer, limit_scenes, load_scenes, pretraining_documents
from calumma.documents.writers import write_parquet
from calumma.files import atomic_write, make_folder
from calumma.hub import shipped_model_folder
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.shards.executors import build_local
from calumma.shards.reader import ShardReader
from calumma.shards.tasks import BuildJob
from calumma.tokens.folder import Tokenizers
from calumma.tokens.text import TextTokenizer
from calumma.train.config import OptimizerConfig
from calumma.train.decoder_trainer import optimizer_step
from calumma.train.optimizer import make_optimizers, set_lr
from calumma.vocabulary import Vocabulary


@dataclass(frozen=True)
class Variant:
    """Settings of a variant."""

    qk_norm: str = "layer"
    norm_order: str = "pre"
    dropout: float = 0.1
    z_loss: float = 1e-5

    trains_image_tokens: bool = True
    """Whether image tokens are in the loss; they are always in the input."""


VARIANTS = {
    "7B recipe": Variant(),
    "no QK-norm": Variant(qk_norm="none"),
    "no dropout": Variant(dropout=0.0),
    "neither": Variant(qk_norm="none", dropout=0.0),
    "no z-loss": Variant(z_loss=0.0),
    "34B recipe": Variant(norm_order="reordered", dropout=0.0),
    "34B, dropout": Variant(norm_order="reordered"),
    "34B, no QK-norm": Variant(norm_order="reordered", dropout=0.0, qk_norm="none"),
    "no image loss": Variant(trains_image_tokens=False),
    "no image loss, no QK-norm": Variant(trains_image_tokens=False, qk_norm="none"),
}
"""The 7B recipe has pre-norm, dropout 0.1, QK-norm and z-loss; the 34B recipe has re-ordered norms
and no dropout."""

LEARNING_RATES = (3e-2, 1e-1)
SEEDS = (0, 1)
STEPS = 300
WARMUP_STEPS = 20
MIXTURE = {"objects": 0.54, "shapes": 0.28, "pages": 0.12, "glosses": 0.06}
"""Mixture weights of the demo's first stage."""

DATA = DataConfig(seq_len=512, global_batch_size=2)


@dataclass(frozen=True)
class StudyRun:
    """One training run."""

    name: str
    lr: float
    seed: int

    def path(self, out: Path) -> Path:
        """Return the file of the run's metrics."""
        name = self.name.replace(",", "").replace(" ", "-")
        return out / "runs" / f"{name}-{self.lr:g}-{self.seed}.jsonl"


def all_runs() -> list[StudyRun]:
    """Return all runs of the study in order."""
    return [StudyRun(name, rate, seed) for rate in LEARNING_RATES for seed in SEEDS for name in VARIANTS]


def decoder_config(variant: Variant, vocabulary_size: int) -> DecoderConfig:
    """Return a config of four layers of width 128, a million parameters."""
    return DecoderConfig(
        vocabulary_size=vocabulary_size,
        model_dim=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        feed_forward_dim=352,
        max_seq_len=DATA.seq_len,
        qk_norm=variant.qk_norm,  # type: ignore[arg-type]
        norm_order=variant.norm_order,  # type: ignore[arg-type]
        dropout=variant.dropout,
    )


def train(run: StudyRun, reader: ShardReader, steps: int) -> Iterator[dict[str, float]]:
    """Train and yield the metrics of each step."""
    variant = VARIANTS[run.name]
    decoder = Decoder(decoder_config(variant, reader.manifest.vocabulary.size))
    decoder.init_weights(run.seed)
    decoder.train()
    loader = PackedLoader(reader, replace(DATA, seed=run.seed))
    loader.set_mixture(MIXTURE)
    optimizers = make_optimizers(decoder, OptimizerConfig(lr=run.lr))
    with record_max_logits(decoder) as max_logits:
        for step in range(steps):
            torch.manual_seed(run.seed * 1_000_003 + step)
            set_lr(optimizers, min(1.0, (step + 1) / WARMUP_STEPS))
            batch = loader.next()
            if not variant.trains_image_tokens:
                batch = mask_image_loss(batch, loader.vocabulary)
            max_logits.clear()
            step_metrics = optimizer_step(
                decoder,
                optimizers,
                [batch],
                vocabulary=loader.vocabulary,
                z_loss_weight=variant.z_loss,
                max_grad_norm=1.0,
            ).read()
            metrics = step_metrics.to_dict()
            metrics = {k: v for k, v in metrics.items() if not k.startswith("grad_norm_")}
            yield {"step": step + 1, **metrics, "max_attention_logit": max(max_logits)}


def mask_image_loss(batch: Batch, vocabulary: Vocabulary) -> Batch:
    """Return the batch with all image codes excluded by the loss mask."""
    codes = vocabulary.codes
    is_code = (batch.labels >= codes.start) & (batch.labels < codes.stop)
    return replace(batch, loss_mask=np.logical_and(batch.loss_mask, ~is_code))


@contextmanager
def record_max_logits(decoder: Decoder) -> Iterator[list[float]]:
    """Yield a list to which each layer appends an upper bound of its attention logits.

    The bound is the longest query times the longest key over the root of head_dim; the rotary
    embedding does not change lengths.
    """
    max_logits: list[float] = []
    queries: list[float] = []

    def longest(heads: Tensor) -> float:
        return float(heads.detach().norm(dim=-1).amax())

    scale = decoder.config.head_dim**0.5
    hooks = []
    for block in decoder.blocks:
        attention = block.attention
        hooks += [
            attention.query_norm.register_forward_hook(lambda module, args, heads: queries.append(longest(heads))),
            attention.key_norm.register_forward_hook(
                lambda module, args, heads: max_logits.append(queries.pop() * longest(heads) / scale)
            ),
        ]
    try:
        yield max_logits
    finally:
        for hook in hooks:
            hook.remove()


def build_study_shards(out: Path, quick: bool) -> Path:
    """Build shards of the demo's training documents with the shipped image tokenizer; `quick` uses few."""
    shards = out / "shards"
    if (shards / "manifest.json").is_file():
        return shards
    config = load_demo_config()
    chosen = limit_scenes(load_scenes(), 24 if quick else 0)
    renderer = SceneRenderer()
    pairs = list(map(renderer.pair, chosen.train))
    documents = [*pairs, *pretraining_documents(chosen, renderer, 0)]
    image = load_model(shipped_model_folder()).tokenizers.image
    texts = (document.text for document in documents)
    text = TextTokenizer.train(texts, num_text=config.num_text, num_codes=image.config.num_codes)
    Tokenizers(text, image).save(out / "tokenizers")
    write_parquet(out / "documents.parquet", documents)
    job = BuildJob(out=shards, tokenizers=out / "tokenizers")
    build_local(job, [out / "documents.parquet"], 1)
    return shards


def run_once(run: StudyRun, reader: ShardReader, out: Path, steps: int) -> None:
    """Train unless the run is finished."""
    path = run.path(out)
    if path.is_file():
        return
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for metrics in train(run, reader, steps):
            short = {k: v if isinstance(v, int) else float(f"{v:.6g}") for k, v in metrics.items()}
            file.write(json.dumps(short) + "\n")
    print(f"{path.stem}: loss {metrics['loss']:.2f}, output norm {metrics['output_norm']:.0f}", flush=True)


def main() -> None:
    """Train the missing runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=Path, help="shards of the demo (default: build them)")
    parser.add_argument("--only", choices=VARIANTS, action="append")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    make_folder(args.out)
    reader = ShardReader(args.shards or build_study_shards(args.out, args.quick))
    steps = 3 if args.quick else STEPS
    for run in all_runs()[: 2 if args.quick else None]:
        if run.name in (args.only or VARIANTS):
            run_once(run, reader, args.out, steps)


if __name__ == "__main__":
    main()
