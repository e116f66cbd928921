"""Training of an image tokenizer on documents, and resuming it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calumma.documents.document import Document, Image
from calumma.errors import CheckpointError
from calumma.files import sha256
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.vq.config import VQConfig
from calumma.train.config_image_tokenizer import (
    ImageTokenizerCheckpointConfig,
    ImageTokenizerRunConfig,
    ImageTokenizerTrainConfig,
)
from calumma.train.image_tokenizer_trainer import ImageTokenizerTrainer, train_image_tokenizer
from calumma.train.run_log import EVENTS_NAME, METRICS_NAME
from calumma.train.stability import StabilityConfig
from calumma.train.step_metrics import DeferredMetrics
from calumma.train.training_loop import TrainCallbacks
from tests.images import png
from tests.train.runs import KilledError, dies_after, logged_events, records_steps

CONFIG = ImageTokenizerTrainConfig(
    steps=4,
    batch_size=2,
    quantize_start_step=1,
    network=VQConfig(
        resolution=16,
        base_channels=32,
        channel_multipliers=(1, 1, 1),
        num_res_blocks=1,
        latent_channels=8,
        code_dim=4,
        num_codes=16,
    ),
)


def run_config(
    config: ImageTokenizerTrainConfig = CONFIG, interval: int = 2, **fields: Any
) -> ImageTokenizerRunConfig:
    checkpoint = ImageTokenizerCheckpointConfig(interval=interval)
    return ImageTokenizerRunConfig(documents=[], training=config, device="cpu", checkpoint=checkpoint, **fields)


def documents_with_images(number: int = 5) -> list[Document]:
    return [Document(id=str(n), content=(Image(data=png(n)),)) for n in range(number)]


def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train_image_tokenizer(run_config(), documents_with_images(), undisturbed)

    with pytest.raises(KilledError):
        train_image_tokenizer(run_config(), documents_with_images(), killed, dies_after(3))
    steps: list[int] = []
    train_image_tokenizer(run_config(), documents_with_images(), killed, records_steps(steps))
    assert steps == [2, 3, 4]
    names = sorted(path.name for path in undisturbed.glob("*.safetensors"))
    assert names
    assert [sha256(undisturbed / name) for name in names] == [sha256(killed / name) for name in names]
    assert len((killed / METRICS_NAME).read_text().splitlines()) == 4


def test_the_tokenizer_in_the_run_s_folder_is_the_returned_one(tmp_path: Path) -> None:
    made = train_image_tokenizer(run_config(), documents_with_images(), tmp_path)
    loaded = ImageTokenizer.load(tmp_path)
    image = documents_with_images(1)[0].images[0].open()
    assert loaded.encode_image(image) == made.encode_image(image)
    assert len(made.encode_image(image)) == 16


def test_a_run_on_other_images_is_refused(tmp_path: Path) -> None:
    train_image_tokenizer(run_config(), documents_with_images(), tmp_path)
    with pytest.raises(CheckpointError, match="was written by a run with documents="):
        train_image_tokenizer(run_config(), documents_with_images(4), tmp_path)
    with pytest.raises(CheckpointError, match=r"with training\.seed=0; this run has training\.seed=1"):
        train_image_tokenizer(run_config(replace(CONFIG, seed=1)), documents_with_images(), tmp_path)


def test_instability_is_skipped_or_rolled_back_whenever_the_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ImageTokenizerTrainer.step

    def step(trainer: ImageTokenizerTrainer, number: int) -> DeferredMetrics:
        consumed, factor = trainer.position.batches_consumed, trainer.position.lr_factor
        hook = None
        if consumed == 10:
            out = trainer.vq_state.network.decoder.conv_out
            hook = out.register_forward_hook(lambda module, x, y: y * math.nan)
        if consumed == 14:
            trainer.position = replace(trainer.position, lr_factor=1e4)
        metrics = real(trainer, number)
        if hook is not None:
            hook.remove()
        trainer.position = replace(trainer.position, lr_factor=factor)
        return metrics

    monkeypatch.setattr(ImageTokenizerTrainer, "step", step)
    stability = StabilityConfig(window=8, spike_steps=2)
    longer = run_config(replace(CONFIG, steps=24, quantize_start_step=2), 3, stability=stability)

    def train(run: Path, callbacks: TrainCallbacks | None = None) -> None:
        train_image_tokenizer(longer, documents_with_images(), run, callbacks)

    train(tmp_path / "undisturbed")
    events = logged_events(tmp_path / "undisturbed")
    assert [event["event"] for event in events] == ["step_skipped", "spike", "rollback"]
    assert [event["step"] for event in events] == [11, 17, 17]
    with pytest.raises(KilledError):
        train(tmp_path / "run", dies_after(17))
    train(tmp_path / "run")
    for name in ("image_tokenizer.safetensors", EVENTS_NAME):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert "Codebook usage" in (tmp_path / "undisturbed" / "report.html").read_text()
