"""An image tokenizer that learns from documents, and goes on where it stopped."""

from __future__ import annotations

import json
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
from calumma.train.config import CheckpointConfig
from calumma.train.config_image_tokenizer import ImageTokenizerTrainConfig
from calumma.train.image_tokenizer_trainer import ImageTokenizerTrainer, train_image_tokenizer
from calumma.train.run_log import EVENTS_NAME, METRICS_NAME
from calumma.train.stability import StabilityConfig
from tests.images import png
from tests.train.runs import KilledError, dies_after

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


def pictures(number: int = 5) -> list[Document]:
    return [Document(id=str(n), content=(Image(data=png(n)),)) for n in range(number)]


def test_a_run_that_broke_off_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_image_tokenizer(CONFIG, pictures(), whole, checkpoint=CheckpointConfig(interval=2))

    def breaking(step: int, metrics: object) -> None:
        if step == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_image_tokenizer(
            CONFIG, pictures(), broken, checkpoint=CheckpointConfig(interval=2), progress=breaking
        )
    begun: list[int] = []
    train_image_tokenizer(
        CONFIG,
        pictures(),
        broken,
        checkpoint=CheckpointConfig(interval=2),
        progress=lambda step, metrics: begun.append(step),
    )
    assert begun == [2, 3, 4]
    names = sorted(path.name for path in whole.glob("*.safetensors"))
    assert names
    assert [sha256(whole / name) for name in names] == [sha256(broken / name) for name in names]
    assert len((broken / METRICS_NAME).read_text().splitlines()) == 4


def test_the_result_stands_in_the_run_and_codes_what_the_returned_one_codes(
    tmp_path: Path,
) -> None:
    made = train_image_tokenizer(CONFIG, pictures(), tmp_path)
    loaded = ImageTokenizer.load(tmp_path)
    picture = pictures(1)[0].images[0].open()
    assert loaded.encode_image(picture) == made.encode_image(picture)
    assert len(made.encode_image(picture)) == 16


def test_a_run_is_not_gone_on_with_on_other_pictures(tmp_path: Path) -> None:
    train_image_tokenizer(CONFIG, pictures(), tmp_path)
    for config, documents in ((CONFIG, pictures(4)), (replace(CONFIG, seed=1), pictures())):
        with pytest.raises(CheckpointError, match="written by a run of another config or other"):
            train_image_tokenizer(config, documents, tmp_path)


def test_trouble_is_skipped_or_rolled_back_whenever_the_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ImageTokenizerTrainer.step

    def step(learner: ImageTokenizerTrainer, number: int) -> dict[str, float]:
        drawn, share = learner.position.batches_consumed, learner.position.lr_factor
        hook = None
        if drawn == 10:
            out = learner.vq_state.network.decoder.conv_out
            hook = out.register_forward_hook(lambda module, x, made: made * math.nan)
        if drawn == 14:
            learner.position = replace(learner.position, lr_factor=1e4)
        told = real(learner, number)
        if hook is not None:
            hook.remove()
        learner.position = replace(learner.position, lr_factor=share)
        return told

    monkeypatch.setattr(ImageTokenizerTrainer, "step", step)
    watch = StabilityConfig(window=8, spike_steps=2)
    longer = replace(CONFIG, steps=24, quantize_start_step=2)

    def train(run: Path, **more: Any) -> None:
        train_image_tokenizer(
            longer, pictures(), run, checkpoint=CheckpointConfig(interval=3), watch=watch, **more
        )

    train(tmp_path / "whole")
    told = [json.loads(one) for one in (tmp_path / "whole" / EVENTS_NAME).read_text().splitlines()]
    assert [one["event"] for one in told] == ["step_skipped", "spike", "rollback"]
    assert [one["step"] for one in told] == [11, 17, 17]
    with pytest.raises(KilledError):
        train(tmp_path / "run", progress=dies_after(17))
    train(tmp_path / "run")
    for name in ("image_tokenizer.safetensors", EVENTS_NAME):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "Codes in use" in (tmp_path / "whole" / "report.html").read_text()
