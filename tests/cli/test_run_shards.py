"""Shards of a run's own documents, and the check of them before the run."""

from pathlib import Path

import pytest

from calumma.cli.run_shards import build_run_shards, require_readable
from calumma.errors import ConfigError, DocumentError
from calumma.shards.reader import ShardReader
from calumma.tokens.folder import Tokenizers
from calumma.train.config import TrainConfig


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Return the config of a run with one document."""
    documents = tmp_path / "my.jsonl"
    documents.write_text('{"text": "a red circle"}\n')
    return TrainConfig(shards=tmp_path / "shards", documents=[str(documents)])


def test_the_shards_of_a_run_are_built_from_its_documents(
    config: TrainConfig, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    tokenizers.text.save(tmp_path / "tok")
    tokenizers.image.save(tmp_path / "tok")
    build_run_shards(config, tmp_path / "tok")
    assert ShardReader(config.shards).manifest.vocabulary == tokenizers.text.vocabulary


def test_without_documents_nothing_is_built(tmp_path: Path) -> None:
    build_run_shards(TrainConfig(shards=tmp_path / "shards"), tmp_path / "not read")
    assert not (tmp_path / "shards").exists()


def test_several_ranks_do_not_build_shards(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        build_run_shards(config, tmp_path / "not read")
    assert str(caught.value) == (
        f"{config.shards} holds no shards of the documents yet; expected them with more than one "
        "rank. Start the same command once without torchrun, or use `calumma build-shards`."
    )


def test_documents_that_do_not_exist_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    require_readable(config.documents)
    with pytest.raises(DocumentError):
        require_readable([str(tmp_path / "missing.jsonl")])
