"""Runs that start from another run: the same bits where nothing changes, and refusals by field."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calumma.errors import CheckpointError, ConfigError
from calumma.model.decoder import Decoder
from calumma.tokens.text import TextTokenizer
from calumma.train.config import PretrainConfig, ScheduleConfig
from calumma.train.config_finetune import TrainableConfig
from calumma.train.finetuning import finetune
from calumma.train.pretraining import pretrain
from tests.train.runs import KilledError, assert_same_weights, dies_after, logged_metrics
from tests.train.test_finetuning import config as tuning_config
from tests.train.test_pretraining import SHAPE
from tests.train.test_pretraining import config as pretrain_config

CONSTANT = ScheduleConfig(warmup_steps=0, min_lr_factor=1.0)


def config(shards: Path, **changes: Any) -> PretrainConfig:
    without_dropout = replace(SHAPE, dropout=0.0)
    common = {"stage_two": None, "schedule": CONSTANT, "model": without_dropout}
    return pretrain_config(shards, "adamw", **common | changes)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in logged_metrics(run)]


def test_with_the_same_data_and_rate_it_is_one_longer_run(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calumma")
    expected = pretrain(config(shards, steps=8), tmp_path / "whole")
    pretrain(config(shards, steps=4), tmp_path / "first")
    second = config(shards, steps=4, init_from=tmp_path / "first")
    assert_same_weights(pretrain(second, tmp_path / "second"), expected)
    assert losses(tmp_path / "first") + losses(tmp_path / "second") == losses(tmp_path / "whole")
    assert caplog.messages[-1] == (
        f"starting from step 4 of {tmp_path / 'first'}; the data continue where they ended there"
    )
    # A killed run resumes from its own checkpoint.
    with pytest.raises(KilledError):
        pretrain(second, tmp_path / "killed", dies_after(3))
    assert_same_weights(pretrain(second, tmp_path / "killed"), expected)


def test_a_new_schedule_and_other_data_start_at_their_beginning(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calumma")
    first = pretrain(config(shards, steps=3), tmp_path / "first")
    assert first is not None
    other = config(shards, steps=4, init_from=tmp_path / "first", schedule=ScheduleConfig(warmup_steps=2))
    other = replace(other, data=replace(other.data, seed=5))
    pretrain(other, tmp_path / "second")
    rates = [line["lr"] for line in logged_metrics(tmp_path / "second")]
    assert rates[0] == pytest.approx(other.optimizer.lr / 2) and rates[-1] < rates[1]
    assert losses(tmp_path / "second")[0] < losses(tmp_path / "first")[0]
    assert caplog.messages[-1].endswith("the data are others, read from their start")
    with pytest.raises(CheckpointError, match=r"with init_from='step 3, \w+'; this run has init_from=None\. "):
        pretrain(replace(other, init_from=None), tmp_path / "second")


def test_runs_that_do_not_fit_are_refused(shards: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    pretrain(config(shards, steps=1), first)

    def message(**changes: Any) -> str:
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            pretrain(config(shards, **{"init_from": first} | changes), tmp_path / "out")
        return str(caught.value)

    assert message(model=replace(SHAPE, num_layers=1)) == (
        f"init_from={first} was trained with model.num_layers=2; this run has model.num_layers=1. "
        "Give the values of that run."
    )
    other = config(shards).optimizer
    assert message(optimizer=replace(other, name="muon")).startswith(
        f"init_from={first} was trained with optimizer.name='adamw'; this run has optimizer.name='muon'."
    )
    assert message(init_from=tmp_path / "none") == (
        f"init_from={tmp_path / 'none'} has no checkpoints; expected the folder of a training run. Fix the path."
    )
    assert message(init_from=tmp_path / "out") == (
        f"init_from={tmp_path / 'out'} is the folder of the run itself; expected another run. Choose another --out."
    )
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_other_tokenizers_are_refused(shards: Path, text_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    first = tmp_path / "first"
    pretrain(config(shards, steps=1), first)
    text_tokenizer.save(first / "model")
    TextTokenizer.train(["other words"], num_text=257, num_codes=8).save(tmp_path / "tok")
    with pytest.raises(CheckpointError, match=r"was trained with tokenizers='\w+'; this run has tokenizers='\w+'\."):
        pretrain(config(shards, init_from=first, tokenizers=tmp_path / "tok"), tmp_path / "out")


def test_a_fine_tuning_continues_a_fine_tuning_of_the_same_model(
    shards: Path, decoder: Decoder, text_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    first, lora = tmp_path / "first", TrainableConfig(blocks="lora", lora_rank=2, embeddings="none")
    common = {"dropout": 0.0, "schedule": CONSTANT, "trainable": lora}

    def tune(run: Path, **changes: Any) -> Decoder | None:
        made = replace(tuning_config(shards), **common | changes)
        return finetune(made, decoder, text_tokenizer.vocabulary, run)

    expected = tune(tmp_path / "whole", steps=4)
    tune(first, steps=2)
    assert_same_weights(tune(tmp_path / "second", steps=2, init_from=first), expected)
    with pytest.raises(CheckpointError, match=r"was trained with trainable.lora_rank=2; this run has trainable.lora_"):
        tune(tmp_path / "other", init_from=first, trainable=replace(lora, lora_rank=4))
    with pytest.raises(ConfigError) as caught:
        pretrain(config(shards, init_from=first), tmp_path / "other")
    assert str(caught.value) == (
        f"init_from={first} is a run of fine-tuning; expected one of pre-training. Choose such a run."
    )
    pretrain(config(shards, steps=1), tmp_path / "base")
    with pytest.raises(ConfigError) as caught:
        tune(tmp_path / "other", init_from=tmp_path / "base")
    assert str(caught.value) == (
        f"init_from={tmp_path / 'base'} is a run of pre-training; expected one of fine-tuning. "
        f"Give --model {tmp_path / 'base'}/model."
    )
