"""The steps of a demo: each is done once, and a killed demo resumes at the first that is not."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.checkpoints.sampling_params import SamplingOptions
from calumma.files import fingerprint, make_folder, read_json, write_json
from calumma.generate.caption_images import generate_caption_images
from calumma.model.decoder import Decoder
from calumma.runtime import STOP
from calumma.tokens.folder import Tokenizers
from calumma.toml_config import config_to_dict
from calumma.train.config import PretrainConfig
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.finetuning import finetune
from calumma.train.pretraining import pretrain
from calumma.train.run_log import read_metrics
from calumma.train.run_samples import SampleConfig
from calumma.train.stability import LoggedMetrics
from calumma.train.training_loop import TrainCallbacks

DEMO_STEPS = ("documents", "image tokenizer", "text tokenizer", "shards", "pre-training", "fine-tuning", "report")
"""Steps of the pipeline, in order."""

DEMO_RUNS = {"image tokenizer": "image-tokenizer", "pre-training": "pretrain", "fine-tuning": "finetune"}
"""Steps that are training runs, with their folders."""

_NUM_SAMPLED_STEPS = 9
"""Steps of pre-training after which samples are drawn, besides its start."""

OnCount = Callable[[int], None]
"""Called with the number of further items that are done."""


class ProgressReporter(Protocol):
    """Receives the progress of the pipeline."""

    def begin(self, number: int, name: str) -> None:
        """Report that a step starts; `number` counts from 1."""
        ...

    def skip(self, number: int, name: str) -> None:
        """Report that a step was finished before."""
        ...

    def training(self, name: str, steps: int) -> TrainCallbacks:
        """Return the callbacks of a training with this number of steps."""
        ...

    def counting(self, name: str, total: int | None, unit: str) -> OnCount:
        """Return the callback of a step over this number of items."""
        ...


@dataclass(frozen=True)
class StepPipeline:
    """Steps in a folder; a finished one leaves a file in OUT/steps."""

    out: Path
    config: Any

    step_names: ClassVar[tuple[str, ...]] = DEMO_STEPS
    """Steps of the pipeline, in order."""

    run_names: ClassVar[Mapping[str, str]] = DEMO_RUNS
    """Steps that are training runs, with their folders."""

    @property
    def tokenizers(self) -> Path:
        """Folder of both tokenizers."""
        return self.out / "tokenizers"

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.out / "model"

    def run_folder(self, name: str) -> Path:
        """Return the folder of a training run."""
        return self.out / "runs" / name

    def run_pretraining(self, config: PretrainConfig, captions: Sequence[str], progress: ProgressReporter) -> None:
        """Pre-train, and write the model folder from which fine-tuning starts.

        The run draws held-out captions, which changes nothing else.
        """
        interval = max(1, config.steps // _NUM_SAMPLED_STEPS)
        image_sampling = self.config.image_sampling
        samples = SampleConfig(interval=interval, prompts=list(captions), image_sampling=image_sampling)
        run, callbacks = self.run_folder("pretrain"), progress.training("pre-training", config.steps)
        generate_images = partial(generate_caption_images, self.tokenizers)
        decoder = pretrain(replace(config, samples=samples), run, callbacks, generate_images=generate_images)
        assert decoder is not None, "a demo is one process"
        save_model(run / "model", ModelComponents(decoder, Tokenizers.load(self.tokenizers), self.sampling))

    @property
    def sampling(self) -> SamplingOptions:
        """Sampling rules of the model folders, by which the report draws too."""
        return SamplingOptions(text=self.config.text_sampling, image=self.config.image_sampling)

    def run_finetuning(self, config: FinetuneConfig, progress: ProgressReporter) -> tuple[Decoder, Tokenizers]:
        """Fine-tune the model of pre-training, and return it with its tokenizers."""
        start = load_model(config.model)
        callbacks = progress.training("fine-tuning", config.steps)
        decoder = finetune(
            config, start.decoder, start.tokenizers.text.vocabulary, self.run_folder("finetune"), callbacks
        )
        assert decoder is not None, "a demo is one process"
        return decoder, start.tokenizers

    @property
    def fingerprint(self) -> str:
        """Hash of the config: steps of another config are repeated."""
        return fingerprint(json.dumps(config_to_dict(self.config), sort_keys=True))

    def metrics(self, run: str) -> list[LoggedMetrics]:
        """Return the metrics of each step of a training run, in order."""
        return list(read_metrics(self.run_folder(run)))

    def seconds(self) -> dict[str, float]:
        """Return the duration of each finished step.

        For a training that was resumed it is the sum over all steps, in whichever launch; for
        other steps it is the duration of the launch that finished them.
        """
        durations = {}
        for name in self.step_names:
            if self._step_file(name).is_file():
                metrics = self.metrics(self.run_names.get(name, name))
                trained = sum(step["step_seconds"] or 0.0 for step in metrics)
                durations[name] = max(read_json(self._step_file(name))["seconds"], trained)
        return durations

    def _step_file(self, name: str) -> Path:
        return self.out / "steps" / f"{self.step_names.index(name) + 1}-{name.replace(' ', '-')}.json"

    def is_done(self, name: str) -> bool:
        """Return whether a step of this config is finished."""
        path = self._step_file(name)
        return path.is_file() and bool(read_json(path)["fingerprint"] == self.fingerprint)

    def run_steps(self, progress: ProgressReporter, steps: Mapping[str, Callable[[ProgressReporter], None]]) -> None:
        """Run every step that is not finished, and all steps after it.

        Raises:
            Interrupted: a signal requested a stop; finished work is saved.
        """
        make_folder(self.out)
        is_stale = False
        for number, name in enumerate(self.step_names, 1):
            if self.is_done(name) and not is_stale:
                progress.skip(number, name)
                continue
            is_stale = True  # later steps depend on this one
            STOP.check(f"{self.out} holds {number - 1} of {len(self.step_names)} steps")
            progress.begin(number, name)
            started = time.perf_counter()
            steps[name](progress)
            record = {"fingerprint": self.fingerprint, "seconds": time.perf_counter() - started}
            write_json(self._step_file(name), record)
