"""The shipped config of the demo is complete, and the pipeline sets the folders."""

from pathlib import Path

import pytest

from calumma.demo.config import load_demo_config
from calumma.errors import ConfigError

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.toml"


def test_the_shipped_config_is_complete(tmp_path: Path) -> None:
    config = load_demo_config()
    pretraining, finetuning = config.pretrain_config(tmp_path), config.finetune_config(tmp_path)
    assert pretraining.shards == finetuning.shards == tmp_path / "shards"
    assert finetuning.model == tmp_path / "runs" / "pretrain" / "model"
    longest = pretraining.model.max_seq_len
    assert max(pretraining.data.seq_len, finetuning.data.seq_len) <= longest
    assert config.image_tokenizer is None
    trained = load_demo_config(TINY).image_tokenizer
    assert trained is not None and trained.network.resolution == 16


def test_one_seed_is_the_seed_of_everything(tmp_path: Path) -> None:
    config = load_demo_config(TINY, {"seed": 7})
    for run in (config.pretrain_config(tmp_path), config.finetune_config(tmp_path)):
        assert (run.seed, run.data.seed) == (7, 7)


def test_checkpoints_have_the_demos_interval(tmp_path: Path) -> None:
    config = load_demo_config(TINY)
    assert config.pretrain_config(tmp_path).checkpoint.interval == config.checkpoint_interval == 2


def test_a_mistake_in_a_table_of_a_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    path.write_text(TINY.read_text().replace("[finetune]\n", "[finetune]\nstepps = 3\n"))
    with pytest.raises(ConfigError) as caught:
        load_demo_config(path).finetune_config(tmp_path)
    assert str(caught.value) == "demo: unknown field stepps; did you mean steps? Fix the name."
