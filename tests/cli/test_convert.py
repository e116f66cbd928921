"""`calumma convert`: what it takes, what it says; the layouts are tested with checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

import calumma
from calumma.checkpoints.model_folder import ModelParts
from calumma.cli.convert import size_in_bytes
from calumma.cli.main import main
from calumma.errors import ConfigError
from tests.checkpoints.drawn import bytes_of, mixed_ids, save_drawn


@pytest.fixture
def own(model_parts: ModelParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_drawn(Path("own"), model_parts)
    return Path("own")


def test_there_and_back_on_the_command_line(
    own: Path, model_parts: ModelParts, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "own", "release", "--to", "meta", "--shards", "4"]) == 0
    assert capsys.readouterr().out == ("release: 84,864 parameters, from a model folder to meta\n")
    assert main(["convert", "release", "back", "--to", "calumma", "--max-shard-size", "100kB"]) == 0
    assert capsys.readouterr().out == (
        "back: 84,864 parameters, from a release in Meta's layout (4 shards) to calumma\n"
    )
    assert len(list(Path("back").glob("model-*.safetensors"))) == 12
    assert main(["convert", "back", "again", "--to", "calumma"]) == 0
    assert bytes_of(Path("again")) == bytes_of(own)
    ids = mixed_ids(model_parts)
    assert calumma.load("back").logits(ids).equal(calumma.load("own").logits(ids))


def test_a_model_that_cannot_draw_says_so(
    own: Path, model_parts: ModelParts, capsys: pytest.CaptureFixture[str]
) -> None:
    save_drawn(Path("blind"), model_parts, draws=False)
    assert main(["convert", "blind", "release", "--to", "meta"]) == 0
    assert capsys.readouterr().out.endswith(
        "; the image tokenizer has no decoder: it cannot draw\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("own out --to meta --shards 0", "--shards 0; wanted at least 1."),
        (
            "own out --to calumma --max-shard-size 5Gb/s",
            "--max-shard-size 5Gb/s; wanted a number with a unit, such as 5GB or 800MB.",
        ),
        (
            "own own --to meta",
            "own holds other things; wanted a folder that is not there yet, or is empty. Choose "
            "another, or delete it.",
        ),
        (
            "own out --to qwen3",
            "own: queries and keys have the paper's LayerNorm with bias, Qwen3 has an RMSNorm "
            "there, and no weights make one of the other. Use --to calumma, or train with "
            'qk_norm = "rms".',
        ),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(
    words: str, message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *words.split()]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert [path.name for path in Path().iterdir()] == ["own"]


def test_sizes() -> None:
    assert [size_in_bytes(text) for text in ("5GB", "800 mb", "7", "1kB", "3b")] == [
        *(5_000_000_000, 800_000_000, 7, 1000, 3)
    ]
    for text in ("0", "GB", "-1GB", "1.5GB"):
        with pytest.raises(ConfigError, match="wanted a number with a unit"):
            size_in_bytes(text)
