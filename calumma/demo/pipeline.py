"""The whole road, from pictures and words to a model that reads and draws, in one folder.

    OUT/documents/     pairs, pages, text and turns for training; held-out pairs
    OUT/runs/          image-tokenizer, pretrain, finetune: metrics and checkpoints
    OUT/tokenizers/    both tokenizers
    OUT/shards/        the documents as ids
    OUT/model/         the model folder
    OUT/report.json, OUT/report.html

A step that is done leaves a note in OUT/steps/ and is not done again; a step that was killed goes
on from what it had saved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.demo.config import DemoConfig
from calumma.demo.scenes import (
    SceneRenderer,
    SceneSplits,
    conversations,
    limit_scenes,
    load_scenes,
    pretraining_documents,
)
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_parquet
from calumma.files import fingerprint, make_folder, read_json, write_json
from calumma.runtime import STOP
from calumma.shards.executors import build_local
from calumma.shards.tasks import BuildJob
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.image_prefetch import default_decode_threads
from calumma.tokens.text import TextTokenizer
from calumma.toml_config import config_to_dict
from calumma.train.config import CheckpointConfig
from calumma.train.finetune import finetune
from calumma.train.image_tokenizer_trainer import train_image_tokenizer
from calumma.train.pretrain import pretrain
from calumma.train.run_log import read_metrics
from calumma.train.stability import Metrics
from calumma.train.training_loop import Progress

DEMO_STEPS = (
    "documents",
    "image tokenizer",
    "text tokenizer",
    "shards",
    "pre-training",
    "fine-tuning",
    "report",
)
"""The road, in order."""


DEMO_RUNS = {
    "image tokenizer": "image-tokenizer",
    "pre-training": "pretrain",
    "fine-tuning": "finetune",
}
"""Steps that are training runs, with their folders."""

OnCount = Callable[[int], None]
"""Hears how many more things are done."""


class ProgressReporter(Protocol):
    """Who hears how far the road has come."""

    def begin(self, number: int, name: str) -> None:
        """A step begins; `number` counts from 1."""
        ...

    def skip(self, number: int, name: str) -> None:
        """A step was done before."""
        ...

    def training(self, name: str, steps: int) -> Progress:
        """A training of so many steps begins; what hears of each."""
        ...

    def counting(self, name: str, total: int | None, unit: str) -> OnCount:
        """Work on so many things begins; what hears how many more are done."""
        ...


@dataclass(frozen=True)
class DemoPipeline:
    """The demo in a folder."""

    out: Path
    config: DemoConfig

    @property
    def pairs(self) -> Path:
        """Training pairs alone: the image tokenizer's food, and the nearest-picture baseline."""
        return self.out / "documents" / "pairs.parquet"

    @property
    def other_documents(self) -> Path:
        """Pages, text and turns for training."""
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
    def tokenizers(self) -> Path:
        """Folder of both tokenizers."""
        return self.out / "tokenizers"

    def run_folder(self, name: str) -> Path:
        """Folder of a training run."""
        return self.out / "runs" / name

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.out / "model"

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of the config: steps of another config are done again."""
        return fingerprint(json.dumps(config_to_dict(self.config), sort_keys=True))

    def metrics(self, run: str) -> list[Metrics]:
        """What each step of a training run saw, in order; empty before the first."""
        return list(read_metrics(self.run_folder(run)))

    def seconds(self) -> dict[str, float]:
        """How long each finished step took.

        A training that was stopped and taken up again counts every step once, whichever launch
        did it; of other steps the launch that finished them counts.
        """
        known = {}
        for name in DEMO_STEPS:
            if self._note(name).is_file():
                trained = sum(
                    m["step_seconds"] or 0.0 for m in self.metrics(DEMO_RUNS.get(name, name))
                )
                known[name] = max(read_json(self._note(name))["seconds"], trained)
        return known

    def _note(self, name: str) -> Path:
        return self.out / "steps" / f"{DEMO_STEPS.index(name) + 1}-{name.replace(' ', '-')}.json"

    def is_done(self, name: str) -> bool:
        """Whether a step of this config was finished before."""
        path = self._note(name)
        return path.is_file() and bool(read_json(path)["fingerprint"] == self.fingerprint)

    def run(
        self, teller: ProgressReporter, report: Callable[[DemoPipeline, OnCount], None]
    ) -> None:
        """Do every step that is not done.

        Args:
            teller: hears how far it has come.
            report: the last step, which measures the model and writes the report.

        Raises:
            Interrupted: a signal asked to stop; what is done is saved.
        """
        make_folder(self.out)
        work: dict[str, Callable[[ProgressReporter], None]] = {
            "documents": self._documents,
            "image tokenizer": self._image_tokenizer,
            "text tokenizer": self._text_tokenizer,
            "shards": self._shards,
            "pre-training": self._pretrain,
            "fine-tuning": self._finetune,
            "report": lambda teller: report(self, teller.counting("measured", None, "pieces")),
        }
        again = False
        for number, name in enumerate(DEMO_STEPS, 1):
            if self.is_done(name) and not again:
                teller.skip(number, name)
                continue
            again = True  # what comes after a step that was done anew is done anew
            STOP.check(f"{self.out} holds {number - 1} of {len(DEMO_STEPS)} steps")
            teller.begin(number, name)
            started = time.perf_counter()
            work[name](teller)
            note = {"fingerprint": self.fingerprint, "seconds": time.perf_counter() - started}
            write_json(self._note(name), note)

    def _documents(self, teller: ProgressReporter) -> None:
        chosen = limit_scenes(load_scenes(), self.config.max_scenes)
        painter = SceneRenderer(chosen.objects)
        seed = self.config.seed
        tell = teller.counting("documents", None, "documents")
        self._write(self.pairs, painter.pairs(chosen.train), tell)
        self._write(self.other_documents, _others(chosen, painter, seed), tell)
        self._write(self.held_out, (painter.pair(scene) for scene in chosen.held_out), tell)
        self._write(self.new_objects, (painter.pair(s) for s in chosen.new_objects), tell)

    def _write(self, path: Path, documents: Iterable[Document], tell: OnCount) -> None:
        made = list(documents)
        write_parquet(path, made)
        tell(len(made))

    def _image_tokenizer(self, teller: ProgressReporter) -> None:
        config = replace(self.config.image_tokenizer, seed=self.config.seed)
        tokenizer = train_image_tokenizer(
            config,
            read_documents([self.pairs]),
            self.run_folder("image-tokenizer"),
            checkpoint=CheckpointConfig(interval=self.config.checkpoint_interval * 4),
            progress=teller.training("image tokenizer", config.steps),
        )
        tokenizer.save(self.tokenizers)

    def _text_tokenizer(self, teller: ProgressReporter) -> None:
        tokenizer = TextTokenizer.train(
            (document.text for document in read_documents([self.pairs, self.other_documents])),
            num_text=self.config.num_text,
            num_codes=self.config.image_tokenizer.network.num_codes,
        )
        tokenizer.save(self.tokenizers)

    def _shards(self, teller: ProgressReporter) -> None:
        job = BuildJob(
            out=self.out / "shards",
            tokenizers=self.tokenizers,
            decode_threads=default_decode_threads(),
        )
        progress = teller.counting("shards", None, "documents")
        build_local(job, [self.pairs, self.other_documents], 1, progress)

    def _pretrain(self, teller: ProgressReporter) -> None:
        config = self.config.pretrain_config(self.out)
        run = self.run_folder("pretrain")
        decoder = pretrain(config, run, teller.training("pre-training", config.steps))
        assert decoder is not None, "the demo is one process"
        save_model(run / "model", ModelComponents(decoder, Tokenizers.load(self.tokenizers)))

    def _finetune(self, teller: ProgressReporter) -> None:
        config = self.config.finetune_config(self.out)
        start = load_model(config.model)
        decoder = finetune(
            config,
            start.decoder,
            start.tokenizers.text.vocabulary,
            self.run_folder("finetune"),
            teller.training("fine-tuning", config.steps),
        )
        assert decoder is not None, "the demo is one process"
        save_model(self.model, ModelComponents(decoder, start.tokenizers))


def _others(chosen: SceneSplits, painter: SceneRenderer, seed: int) -> Iterable[Document]:
    yield from pretraining_documents(chosen, painter, seed)
    yield from conversations(chosen, painter, seed)
