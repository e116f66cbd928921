"""A dry run tells the plan below the config, and starts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.cli.main import main

ROOT = Path(__file__).parents[2]


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines of the plan; the rest is a config that TOML reads."""
    assert main([*words, "--out", "nowhere", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not Path("nowhere").exists()
    return [line.removeprefix("# ") for line in lines if line.startswith("# ")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_gpus_that_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "runs/decoder-94M.toml")
    plan, memory, speed, time = dry(capsys, "pretrain", config, "--gpu", "h100-80gb", "--gpus", "8")
    assert plan == "plan: 94,382,592 parameters on 8 x h100-80gb"
    assert memory.startswith("memory: ") and " of 79 GiB, in the loss (weights 0.04, " in memory
    assert "ids a second where 40% of the peak is reached (assumed), " in speed
    assert time.startswith("time: ")
    assert time.endswith(" hours for 160,000 steps, 167,772,160,000 ids")


def test_this_machine_and_why_it_does_not_do(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "runs/decoder-7B.toml")
    (line,) = dry(capsys, "pretrain", config)
    assert line == (
        "plan: none for 1 x this CPU: 1 ranks are no multiple of "
        "parallel.data_parallel_replicate=128 times parallel.tensor_parallel=1; expected one. "
        "Start another number, or give another --parallel.data-parallel-replicate or "
        "--parallel.tensor-parallel."
    )
    *_, last = dry(capsys, "pretrain", config, "--parallel.data-parallel-replicate", "1")
    assert last.startswith("it does not fit: a GPU needs ")


def test_gpus_that_do_not_divide_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "runs/decoder-7B.toml")
    words = ["pretrain", config, "--out", "x", "--dry-run", "--gpu", "h100-80gb", "--gpus", "6"]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: 6 ranks are no multiple")


def test_a_fine_tuning_takes_its_model_s_shape(
    model_parts: ModelComponents, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tune.toml").write_text(
        'model = "model"\nshards = "s"\ntokenizers = "t"\n[weights]\nchat = 1.0\n'
    )
    assert dry(capsys, "finetune", "tune.toml") == ["plan: none, since model is not there yet"]
    save_model(Path("model"), model_parts)
    plan, *_ = dry(capsys, "finetune", "tune.toml")
    assert plan == f"plan: {model_parts.decoder.num_parameters:,} parameters on 1 x this CPU"


def test_an_image_tokenizer_s_pictures_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "runs/image-tokenizer-64.toml")
    plan, memory, speed, time = dry(capsys, "train-image-tokenizer", config)
    assert plan.endswith(" parameters (encoder, codebook, decoder) on 1 x this CPU")
    assert memory.endswith("the networks of the losses come on top")
    assert "pictures a second where 50% of the peak is reached (assumed)" in speed
    assert time.startswith("time: at least ")
