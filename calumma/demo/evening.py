"""The demo of size "evening": a model of still lifes, from documents to its scores, in one folder.

    OUT/documents/     still lifes, images for the image tokenizer, and conversations for fine-tuning
    OUT/runs/          image-tokenizer, pretrain, finetune: metrics and checkpoints
    OUT/tokenizers/    both tokenizers
    OUT/shards/        the tokenized still lifes
    OUT/conversations/ the tokenized conversations
    OUT/model/         the model folder, with recipe.json
    OUT/report.json, OUT/report.html

The model in the package was made by this pipeline with `evening.toml`.
"""

from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.checkpoints.sampling_params import ImageSampling, TextSampling
from calumma.corpora.still_life_corpus import STILL_LIFES, StillLifeConfig, generate_still_lifes
from calumma.corpora.still_life_documents import STILL_LIFE_TUNING_SHARES, StillLifeWriter
from calumma.demo.steps import DEMO_STEPS, ProgressReporter, StepPipeline
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_parquet
from calumma.errors import ConfigError
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.evaluator import evaluate
from calumma.evaluate.still_life_prompts import DRAWING_SKILLS, sample_drawing_prompts
from calumma.evaluate.still_lifes import STILL_LIFES_TASK
from calumma.files import write_json
from calumma.generate.model import Model
from calumma.shards.executors import build_local
from calumma.shards.tasks import BuildJob
from calumma.tokens.image_prefetch import default_decode_threads
from calumma.tokens.text import TextTokenizer
from calumma.toml_config import build_config, config_to_dict, read_toml
from calumma.train.config import PretrainConfig
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.config_image_tokenizer import (
    ImageTokenizerCheckpointConfig,
    ImageTokenizerRunConfig,
    ImageTokenizerTrainConfig,
)
from calumma.train.image_tokenizer_trainer import train_image_tokenizer

RECIPE_FILE = "recipe.json"
"""File of the model folder with the config, seed and fingerprint of the run that made it."""


@dataclass(frozen=True, kw_only=True)
class EveningConfig:
    """All settings of the evening's demo but its folder."""

    image_tokenizer: ImageTokenizerTrainConfig

    pretrain: dict[str, Any]
    """Fields of `PretrainConfig` except folders and seed."""

    finetune: dict[str, Any]
    """Fields of `FinetuneConfig` except folders and seed."""

    finetuned_share: float = 1.0
    """Share of the fine-tuned weights in the model, in (0, 1]; the others are those of
    pre-training. An average keeps skills that fine-tuning alone loses."""

    num_documents: int
    """Still lifes for pre-training."""

    num_conversations: int
    """Documents for fine-tuning."""

    num_images: int
    """Images for the image tokenizer; the text tokenizer reads as many documents."""

    num_text: int
    """Text tokens of the vocabulary, the 256 bytes included."""

    text_sampling: TextSampling = field(default_factory=TextSampling)
    image_sampling: ImageSampling = field(default_factory=ImageSampling)
    """Sampling rules of the model folder, tuned on held-out captions."""

    max_prompts: int = 200
    """Prompts of each skill in the report."""

    checkpoint_interval: int = 250
    """Steps between two checkpoints, which a killed training loses at most."""

    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.finetuned_share <= 1:
            raise ConfigError(f"finetuned_share={self.finetuned_share}; expected a share above 0 and at most 1.")

    def pretrain_config(self, out: Path) -> PretrainConfig:
        """Return the config of pre-training in the demo's folder."""
        return build_config(PretrainConfig, self._with_folders(self.pretrain, out, "shards"), "evening")

    def finetune_config(self, out: Path) -> FinetuneConfig:
        """Return the config of fine-tuning in the demo's folder."""
        tree = self._with_folders(self.finetune, out, "conversations")
        tree["model"] = out / "runs" / "pretrain" / "model"
        return build_config(FinetuneConfig, tree, "evening")

    def _with_folders(self, tree: dict[str, Any], out: Path, shards: str) -> dict[str, Any]:
        return {
            **tree,
            "shards": out / shards,
            "tokenizers": out / "tokenizers",
            "seed": self.seed,
            "data": {"seed": self.seed, **tree.get("data", {})},
            "checkpoint": {"interval": self.checkpoint_interval, **tree.get("checkpoint", {})},
        }


def load_evening_config(path: Path | None = None, overrides: dict[str, Any] | None = None) -> EveningConfig:
    """Load the shipped config, or the one in a file, with overridden fields."""
    with as_file(files("calumma.demo").joinpath("evening.toml")) as shipped:
        tree = read_toml(path or shipped) | (overrides or {})
    return build_config(EveningConfig, tree, str(path or "evening.toml"))


@dataclass(frozen=True)
class EveningPipeline(StepPipeline):
    """The evening's demo in a folder."""

    config: EveningConfig

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the weights: the config with its seed, and its fingerprint."""
        return {"command": "calumma demo --size evening", "fingerprint": self.fingerprint,
                "config": config_to_dict(self.config)}  # fmt: skip

    def run(self, progress: ProgressReporter) -> None:
        """Run the steps as `run_steps` does."""
        steps = (
            self._documents,
            self._image_tokenizer,
            self._text_tokenizer,
            self._shards,
            self._pretrain,
            self._finetune,
            self._report,
        )
        self.run_steps(progress, dict(zip(DEMO_STEPS, steps, strict=True)))

    @property
    def _images(self) -> Path:
        return self.out / "documents" / "images.parquet"

    @property
    def _conversations(self) -> Path:
        return self.out / "documents" / "conversations.parquet"

    def _documents(self, progress: ProgressReporter) -> None:
        config = StillLifeConfig(num_documents=self.config.num_documents, seed=self.config.seed, side=self._side)
        on_count = progress.counting("documents", self.config.num_documents, "documents")
        generate_still_lifes(self.out / "documents", config, on_count)
        writer = StillLifeWriter(self.config.seed, self._side)
        write_parquet(self._images, map(writer.image_document, range(self.config.num_images)))
        writer = StillLifeWriter(self.config.seed + 1, self._side, STILL_LIFE_TUNING_SHARES, step_by_step=True)
        write_parquet(self._conversations, map(writer.document, range(self.config.num_conversations)))

    @property
    def _side(self) -> int:
        return self.config.image_tokenizer.network.resolution

    def _image_tokenizer(self, progress: ProgressReporter) -> None:
        config = ImageTokenizerRunConfig(
            documents=[str(self._images)],
            training=replace(self.config.image_tokenizer, seed=self.config.seed),
            checkpoint=ImageTokenizerCheckpointConfig(interval=self.config.checkpoint_interval),
        )
        callbacks = progress.training("image tokenizer", config.steps)
        folder = self.out / "runs" / "image-tokenizer"
        train_image_tokenizer(config, read_documents([self._images]), folder, callbacks).save(self.tokenizers)

    def _text_tokenizer(self, progress: ProgressReporter) -> None:
        writer = StillLifeWriter(self.config.seed, side=8)
        tokenizer = TextTokenizer.train(
            (writer.document(number).text for number in range(self.config.num_images)),
            num_text=self.config.num_text,
            num_codes=self.config.image_tokenizer.network.num_codes,
        )
        tokenizer.save(self.tokenizers)

    def _shards(self, progress: ProgressReporter) -> None:
        on_count = progress.counting("shards", self.config.num_documents + self.config.num_conversations, "documents")
        for name, documents in (
            ("shards", self.out / "documents" / STILL_LIFES),
            ("conversations", self._conversations),
        ):
            job = BuildJob(out=self.out / name, tokenizers=self.tokenizers, decode_threads=default_decode_threads())
            build_local(job, [documents], 1, on_count)

    def _pretrain(self, progress: ProgressReporter) -> None:
        captions = [sample_drawing_prompts(skill, 1, self.config.seed)[0].caption for skill in DRAWING_SKILLS]
        self.run_pretraining(self.config.pretrain_config(self.out), captions, progress)

    def _finetune(self, progress: ProgressReporter) -> None:
        decoder, tokenizers = self.run_finetuning(self.config.finetune_config(self.out), progress)
        start = load_model(self.run_folder("pretrain") / "model").decoder
        for tuned, pretrained in zip(decoder.parameters(), start.parameters(), strict=True):
            tuned.data.lerp_(pretrained.data, 1 - self.config.finetuned_share)
        decoder = decoder.to(torch.bfloat16)  # half the size, with the same scores
        save_model(self.model, ModelComponents(decoder, tokenizers, self.sampling))
        write_json(self.model / RECIPE_FILE, self.recipe)

    def _report(self, progress: ProgressReporter) -> None:
        model = Model(load_model(self.model))
        on_count = progress.counting("report", None, "prompts")
        config = EvalConfig(seed=self.config.seed, max_prompts=self.config.max_prompts, log_samples=12)
        report = evaluate(model, [], [STILL_LIFES_TASK], config, progress=lambda name, done, total: on_count(1))
        replace(report, model=str(self.model), command="calumma demo --size evening").save(self.out)
