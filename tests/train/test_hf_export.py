"""Model folders of checkpoints: those that one process would have saved."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.checkpoints.training_checkpoint import RetentionPolicy, flatten_checkpoint, write_checkpoint
from calumma.train.config import CheckpointConfig, PretrainConfig
from calumma.train.config_finetune import FinetuneConfig, TrainableConfig
from calumma.train.finetuning import finetune
from calumma.train.hf_export import HFExporter
from calumma.train.pretraining import pretrain
from tests.checkpoints.random_models import folder_bytes
from tests.train import decoder_ranks
from tests.train.runs import KilledError, assert_same_weights, dies_after


def exporter(run: Path, parts: ModelComponents, every: int = 0) -> HFExporter:
    return HFExporter(
        run=run, shape=parts.decoder.config, retention=RetentionPolicy(keep_every=every), tokenizers=parts.tokenizers
    )


def test_the_folder_of_a_checkpoint_is_that_of_its_decoder(model_parts: ModelComponents, tmp_path: Path) -> None:
    for step, times in ((2, 2.0), (3, 1.0)):
        state = {n: times * t for n, t in model_parts.decoder.state_dict().items()}
        write_checkpoint(
            tmp_path, flatten_checkpoint(step, {"model": state, "n": step}, {"seed": 0}), RetentionPolicy()
        )
    assert exporter(tmp_path, model_parts).export_last() == tmp_path / "model"
    save_model(tmp_path / "expected", model_parts)
    assert folder_bytes(tmp_path / "model") == folder_bytes(tmp_path / "expected")


def run_of(shards: Path, tokenizers: Path, async_save: bool = True) -> PretrainConfig:
    return replace(
        decoder_ranks.run_config(shards),
        tokenizers=tokenizers,
        checkpoint=CheckpointConfig(interval=1, keep_every=2, keep_latest=1, async_save=async_save),
    )


@pytest.fixture
def tokenizer_folder(model_parts: ModelComponents, tmp_path: Path) -> Path:
    model_parts.tokenizers.save(tmp_path / "tokenizers")
    return tmp_path / "tokenizers"


@pytest.mark.parametrize("async_save", [True, False])
def test_each_permanent_checkpoint_and_the_last_one_are_exported(
    shards: Path, tokenizer_folder: Path, async_save: bool, tmp_path: Path
) -> None:
    config = run_of(shards, tokenizer_folder, async_save)
    assert pretrain(config, tmp_path / "run", export=True) is None
    alone = pretrain(config, tmp_path / "alone")
    assert alone is not None
    assert_same_weights(load_model(tmp_path / "run" / "model").decoder, alone)
    folders = sorted(path.name for path in (tmp_path / "run" / "models").iterdir())
    assert folders == ["step-00000002", "step-00000004", "step-00000006"]
    last = tmp_path / "run" / "models" / "step-00000006"
    assert folder_bytes(last) == folder_bytes(tmp_path / "run" / "model")


def test_missing_folders_of_a_killed_run_are_written_when_it_resumes(
    shards: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    config = run_of(shards, tokenizer_folder)
    with pytest.raises(KilledError):
        pretrain(config, tmp_path, dies_after(4), export=True)
    expected = folder_bytes(tmp_path / "models" / "step-00000002")
    shutil.rmtree(tmp_path / "models" / "step-00000002")
    (tmp_path / "models" / "step-00000004" / "config.json").unlink()
    with pytest.raises(KilledError):
        pretrain(config, tmp_path, dies_after(5), export=True)
    assert folder_bytes(tmp_path / "models" / "step-00000002") == expected
    assert load_model(tmp_path / "models" / "step-00000004").decoder.config.num_layers == 2


@pytest.mark.parametrize("blocks", ["all", "lora"])
def test_exports_of_a_fine_tuning_are_plain_models(
    blocks: Any, shards: Path, model_parts: ModelComponents, tmp_path: Path
) -> None:
    base = decoder_ranks.run_config(shards)
    config = FinetuneConfig(
        **{name: getattr(base, name) for name in ("shards", "tokenizers", "data", "optimizer")},
        model=Path("unused"),
        weights={"chat": 1.0},
        steps=2,
        checkpoint=CheckpointConfig(interval=1, keep_every=1),
        device="cpu",
        trainable=TrainableConfig(blocks=blocks, embeddings="none" if blocks == "lora" else "all"),
    )
    parts = replace(model_parts, decoder=load_start(model_parts, tmp_path / "start"))
    vocabulary = parts.tokenizers.text.vocabulary
    tuned = finetune(config, parts.decoder, vocabulary, tmp_path / "run", tokenizers=parts.tokenizers)
    assert tuned is not None
    loaded = load_model(tmp_path / "run" / "models" / "step-00000002").decoder
    for name, tensor in tuned.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def load_start(parts: ModelComponents, folder: Path) -> Any:
    save_model(folder, parts)
    return load_model(folder).decoder
