"""What all commands share: options, loading of configs, saving of the resolved config."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from calumma.cli.command import (
    CommandParser,
    add_command,
    add_config_arguments,
    load_run_config,
    parse_quantization,
    training_progress,
)
from calumma.errors import ConfigError
from calumma.runtime import num_busy_cpus


@dataclass(frozen=True)
class Config:
    steps: int = 3


def parsed(*words: str) -> argparse.Namespace:
    parser = CommandParser(prog="calumma")
    command = add_command(parser.add_subparsers(), "train", "CONFIG", "Train.\nLong.", "  calumma train")
    add_config_arguments(command)
    args, args.overrides = parser.parse_known_args(["train", *words])
    return args


def config_file(folder: Path) -> str:
    (folder / "c.toml").write_text("steps = 4")
    return str(folder / "c.toml")


def test_a_config_is_loaded_and_the_folder_made(tmp_path: Path) -> None:
    args = parsed(config_file(tmp_path), "--out", str(tmp_path / "run"), "--steps", "5")
    assert load_run_config(Config, args) == Config(steps=5)
    assert (tmp_path / "run").is_dir()


def test_a_dry_run_only_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parsed(config_file(tmp_path), "--out", str(tmp_path / "run"), "--dry-run")
    assert load_run_config(Config, args) is None
    assert capsys.readouterr().out == "steps = 4\n"
    assert not (tmp_path / "run").exists()


def test_options_cannot_be_abbreviated(tmp_path: Path) -> None:
    # "--d" would otherwise be a dry run, and "--o" the folder.
    args = parsed(config_file(tmp_path), "--out", "o", "--d", "1")
    assert (args.overrides, args.dry_run) == (["--d", "1"], False)


def test_an_error_is_raised_and_not_printed() -> None:
    with pytest.raises(ConfigError) as caught:
        parsed("c.toml")
    assert str(caught.value) == (
        "the following arguments are required: --out; `calumma train --help` lists the options."
    )


def test_the_config_is_saved_when_training_starts_and_not_before(tmp_path: Path) -> None:
    with training_progress(tmp_path, Config(), "training", 3) as callbacks:
        assert callbacks.on_start is not None and callbacks.on_step is not None
        assert not (tmp_path / "config.json").exists()
        callbacks.on_start(0)
        assert json.loads((tmp_path / "config.json").read_text()) == {"steps": 3}
        callbacks.on_step(1, {"loss": 1.0})
        assert callbacks.num_busy_cpus is num_busy_cpus


def test_quantization_none_is_no_quantization() -> None:
    assert [parse_quantization(text) for text in ("none", "int8")] == [None, "int8"]
