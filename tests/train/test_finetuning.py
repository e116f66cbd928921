"""Fine-tuning: answers in the loss, a start that is unchanged, killed runs."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calumma.batches.loader import DataConfig
from calumma.errors import CheckpointError, ShardError
from calumma.model.decoder import Decoder
from calumma.tokens.text import TextTokenizer
from calumma.train.config import CheckpointConfig, OptimizerConfig, ScheduleConfig
from calumma.train.config_finetune import FinetuneConfig
from calumma.train.finetuning import finetune
from calumma.vocabulary import Vocabulary
from tests.train.runs import KilledError, assert_same_weights, dies_after, logged_metrics


def config(shards: Path) -> FinetuneConfig:
    return FinetuneConfig(
        shards=shards,
        tokenizers=Path("not read"),
        model=Path("not read"),
        weights={"chat": 1.0},
        steps=6,
        checkpoint=CheckpointConfig(interval=2),
        device="cpu",
        dropout=0.2,
        data=DataConfig(seq_len=32, global_batch_size=2, pack_window=2),
        optimizer=OptimizerConfig(lr=1e-2),
        schedule=ScheduleConfig(warmup_steps=1),
    )


def test_a_killed_run_ends_in_the_bits_of_an_undisturbed_one(
    shards: Path, decoder: Decoder, text_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    before = copy.deepcopy(decoder.state_dict())
    arguments = (config(shards), decoder, text_tokenizer.vocabulary)
    expected = finetune(*arguments, tmp_path / "undisturbed")
    for dead in (1, 3):
        with pytest.raises(KilledError):
            finetune(*arguments, tmp_path / f"{dead}", dies_after(dead))
        assert_same_weights(finetune(*arguments, tmp_path / f"{dead}"), expected)
    assert expected.config.dropout == 0.2
    assert logged_metrics(tmp_path / "undisturbed")[-1]["loss"] < logged_metrics(tmp_path / "undisturbed")[0]["loss"]
    assert all(torch.equal(before[n], t) for n, t in decoder.state_dict().items())


def test_only_answers_are_in_the_loss(
    shards: Path, decoder: Decoder, text_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    finetune(config(shards), decoder, text_tokenizer.vocabulary, tmp_path)
    # The images are in the questions.
    assert all(line["loss_image"] == 0 and line["loss_text"] > 0 for line in logged_metrics(tmp_path))


def test_another_start_is_another_run(
    shards: Path, decoder: Decoder, text_tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    finetune(config(shards), decoder, text_tokenizer.vocabulary, tmp_path)
    other = Decoder(replace(decoder.config))
    other.init_weights(5)
    with pytest.raises(CheckpointError, match="was written by a run with model="):
        finetune(config(shards), other, text_tokenizer.vocabulary, tmp_path)


def test_shards_of_another_vocabulary_are_refused(shards: Path, decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="expected this run's vocabulary"):
        finetune(config(shards), decoder, Vocabulary(num_codes=3, num_text=9), tmp_path)
