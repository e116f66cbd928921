"""`calumma pretrain`: errors, tokenizers without a decoder, and child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, load_model
from calumma.cli.main import main
from calumma.errors import ConfigError
from calumma.tokens.folder import Tokenizers
from tests.checkpoints.random_models import save_random_model
from tests.end_to_end.test_verbs import PRETRAIN


def test_missing_shards_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(PRETRAIN)
    assert main(["pretrain", "run.toml", "--out", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("error: tok", "error: shards"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the functions that a start on eight small GPUs calls."""
    calls: list[str] = []

    def pretrain(*args: object, **kwargs: object) -> None:
        calls.append("pretrain")
        raise ConfigError("started.")

    monkeypatch.setattr("calumma.train.pretraining.pretrain", pretrain)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    properties = SimpleNamespace(total_memory=79 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    return calls


CONFIG = str(Path(__file__).parents[2] / "runs" / "decoder-37M.toml")


def test_a_run_that_does_not_fit_the_gpus_is_refused_before_it_starts(
    started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", CONFIG, "--out", str(tmp_path), "--data.global-batch-size", "4096"]
    command += ["--data.micro-batch-size", "512"]
    assert main(command) == 2
    assert not started
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a GPU needs ")
    assert ", and h100-80gb has 79; expected a run that fits. The nearest that does: " in line
    assert "--data.micro-batch-size 256 (" in line
    assert main([*command, "--no-plan-check"]) == 2
    assert started == ["pretrain"]


def test_a_run_that_fits_starts_and_other_ranks_do_not_plan(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["pretrain", CONFIG, "--out", str(tmp_path)]) == 2
    assert started == ["pretrain"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("calumma.cli.dry_run.require_fitting_run", None)
    assert main(["pretrain", CONFIG, "--out", str(tmp_path)]) == 2
    assert started == ["pretrain"] * 2


def test_a_run_on_a_gpu_without_known_specs_starts(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce 256")
    assert main(["pretrain", CONFIG, "--out", str(tmp_path)]) == 2
    assert started == ["pretrain"]


def test_a_mistyped_stage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text(PRETRAIN.replace("stage_two.weights", "stage_too.weights"))
    assert main(["pretrain", str(path), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: unknown field stage_too; did you mean stage_two? Fix the name.\n"
    )


def test_tokenizers_without_an_image_decoder_give_a_model_without_one(
    shards: Path, model_parts: ModelComponents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_random_model(Path("source"), model_parts, has_image_decoder=False)
    assert main(["convert", "source", "tok", "--to", "tokenizers"]) == 0
    Path("shards").symlink_to(shards)
    Path("run.toml").write_text(PRETRAIN)
    assert main(["pretrain", "run.toml", "--out", "run", "--steps", "2"]) == 0
    trained, source = load_model(Path("run/model")), load_model(Path("source"))
    assert not trained.tokenizers.has_image_decoder
    assert trained.tokenizers.image.fingerprint == source.tokenizers.image.fingerprint


RUN = """\
shards = "{shards}"
tokenizers = "{tokenizers}"
steps = 100000
checkpoint.interval = 100000
device = "cpu"
data = {{ seq_len = 32, global_batch_size = 2, num_workers = 2 }}
model = {{ model_dim = 16, num_layers = 1, num_heads = 2, num_kv_heads = 2, feed_forward_dim = 16 }}
stage_one.weights = {{ pairs = 1.0 }}
stage_two.weights = {{ pairs = 1.0 }}
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 3)])
def test_no_loader_process_outlives_its_run(
    number: int, status: int, shards: Path, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    tokenizers.text.save(tmp_path)
    tokenizers.image.save(tmp_path)
    config = tmp_path / "run.toml"
    config.write_text(RUN.format(shards=shards, tokenizers=tmp_path))
    command = [sys.executable, "-m", "calumma", "pretrain", config, "--out", tmp_path / "run"]
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    _wait_until(lambda: metrics.exists() and metrics.stat().st_size > 1000)
    assert len(_processes_of_session(run.pid)) >= 3
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # as a terminal does, to all of them
    else:
        run.send_signal(number)
    assert run.wait(60) == status
    _wait_until(lambda: not _processes_of_session(run.pid))
    assert run.stderr is not None
    if status == 3:
        assert "Run the same command to resume." in run.stderr.read()
    run.stderr.close()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _processes_of_session(leader: int) -> list[int]:
    """Return the running processes of a session."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(leader)], capture_output=True, text=True, check=False)
    lines = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, state in lines if not state.startswith("Z")]
