"""The demo pipeline: from documents to a trained model and its report, in one folder.

    OUT/documents/     training pairs, pages, text and conversations; held-out pairs
    OUT/runs/          pretrain, finetune, and image-tokenizer if it is trained: metrics and checkpoints
    OUT/tokenizers/    both tokenizers
    OUT/shards/        the tokenized documents
    OUT/model/         the model folder
    OUT/report.json, OUT/report.html

A finished step leaves a file in OUT/steps/ and is not repeated; a killed step resumes from its last
checkpoint.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.corpora.still_life import SIDE
from calumma.demo.config import DemoConfig
from calumma.demo.scenes import SceneRenderer, conversations, limit_scenes, load_scenes, pretraining_documents
from calumma.demo.steps import OnCount, ProgressReporter, StepPipeline
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_parquet
from calumma.hub import shipped_model_folder
from calumma.shards.executors import build_local
from calumma.shards.tasks import BuildJob
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.image_prefetch import default_decode_threads
from calumma.tokens.text import TextTokenizer
from calumma.train.config_image_tokenizer import ImageTokenizerCheckpointConfig, ImageTokenizerRunConfig
from calumma.train.image_tokenizer_trainer import train_image_tokenizer

_NUM_SAMPLES = 4
"""Held-out captions that are drawn while pre-training."""


@dataclass(frozen=True)
class DemoPipeline(StepPipeline):
    """The demo in a folder."""

    config: DemoConfig

    @property
    def pairs(self) -> Path:
        """Training pairs: training data of the image tokenizer, and of baselines."""
        return self.out / "documents" / "pairs.parquet"

    @property
    def other_documents(self) -> Path:
        """Pages, text and conversations for training."""
        return self.out / "documents" / "others.parquet"

    @property
    def held_out(self) -> Path:
        """Pairs whose captions never occur in training."""
        return self.out / "documents" / "held-out.parquet"

    @property
    def new_objects(self) -> Path:
        """Pairs of objects that never occur in training."""
        return self.out / "documents" / "new-objects.parquet"

    @property
    def side(self) -> int:
        """Pixels per side of the images."""
        training = self.config.image_tokenizer
        return training.network.resolution if training else SIDE

    def run(self, progress: ProgressReporter, report: "Callable[[DemoPipeline, OnCount], None]") -> None:
        """Run every step that is not finished, and all steps after it.

        Args:
            progress: receives the progress.
            report: the last step, which evaluates the model and writes the report.

        Raises:
            Interrupted: a signal requested a stop; finished work is saved.
        """
        self.run_steps(
            progress,
            {
                "documents": self._documents,
                "image tokenizer": self._image_tokenizer,
                "text tokenizer": self._text_tokenizer,
                "shards": self._shards,
                "pre-training": self._pretrain,
                "fine-tuning": self._finetune,
                "report": lambda progress: report(self, progress.counting("report", None, "batches")),
            },
        )

    def _documents(self, progress: ProgressReporter) -> None:
        splits = limit_scenes(load_scenes(), self.config.max_scenes)
        renderer, seed = SceneRenderer(self.side), self.config.seed
        others = [*pretraining_documents(splits, renderer, seed), *conversations(splits, renderer, seed)]
        on_count = progress.counting("documents", None, "documents")
        _write(self.pairs, map(renderer.pair, splits.train), on_count)
        _write(self.other_documents, others, on_count)
        _write(self.held_out, map(renderer.pair, splits.held_out), on_count)
        _write(self.new_objects, map(renderer.pair, splits.new_objects), on_count)

    def _image_tokenizer(self, progress: ProgressReporter) -> None:
        if self.config.image_tokenizer is None:
            load_model(shipped_model_folder()).tokenizers.image.save(self.tokenizers)
            return
        interval = self.config.checkpoint_interval * 4
        config = ImageTokenizerRunConfig(
            documents=[str(self.pairs)],
            training=replace(self.config.image_tokenizer, seed=self.config.seed),
            device="cpu",
            checkpoint=ImageTokenizerCheckpointConfig(interval=interval),
        )
        tokenizer = train_image_tokenizer(
            config,
            read_documents([self.pairs]),
            self.run_folder("image-tokenizer"),
            progress.training("image tokenizer", config.steps),
        )
        tokenizer.save(self.tokenizers)

    def _text_tokenizer(self, progress: ProgressReporter) -> None:
        tokenizer = TextTokenizer.train(
            (document.text for document in read_documents([self.pairs, self.other_documents])),
            num_text=self.config.num_text,
            num_codes=ImageTokenizer.load(self.tokenizers).config.num_codes,
        )
        tokenizer.save(self.tokenizers)

    def _shards(self, progress: ProgressReporter) -> None:
        job = BuildJob(out=self.out / "shards", tokenizers=self.tokenizers, decode_threads=default_decode_threads())
        on_count = progress.counting("shards", None, "documents")
        build_local(job, [self.pairs, self.other_documents], 1, on_count)

    def _pretrain(self, progress: ProgressReporter) -> None:
        captions = [document.text for document in itertools.islice(read_documents([self.held_out]), _NUM_SAMPLES)]
        self.run_pretraining(self.config.pretrain_config(self.out), captions, progress)

    def _finetune(self, progress: ProgressReporter) -> None:
        decoder, tokenizers = self.run_finetuning(self.config.finetune_config(self.out), progress)
        save_model(self.model, ModelComponents(decoder, tokenizers, self.sampling))


def _write(path: Path, documents: Iterable[Document], on_count: OnCount) -> None:
    all_documents = list(documents)
    write_parquet(path, all_documents)
    on_count(len(all_documents))
