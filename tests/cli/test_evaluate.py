import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.cli import evaluate
from calumma.documents.writers import write_parquet
from calumma.errors import ConfigError, DocumentError, EvaluationError, Interrupted
from calumma.runtime import STOP
from tests.evaluate.oracle import scene_documents
from tests.evaluate.published import write_vlm_benchmarks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="calumma")
    evaluate.add_evaluate_command(parser.add_subparsers())
    return parser


def _run(*words: str | Path) -> argparse.Namespace:
    args, args.overrides = _parser().parse_known_args(["evaluate", *map(str, words)])
    args.run(args)
    return args


@pytest.fixture(scope="module")
def folder(model_parts: ModelComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    save_model(folder / "model", model_parts)
    scenes = scene_documents()
    write_parquet(folder / "held.parquet", scenes)
    write_parquet(folder / "train.parquet", scenes[:4])
    return folder


def test_quantized_weights_are_measured(folder: Path, tmp_path: Path) -> None:
    values = []
    for name, options in (("float", ()), ("int8", ("--quantization", "int8"))):
        given = ("--tasks", "likelihood", "--documents", folder / "held.parquet", "--limit", "2", "--device", "cpu")
        _run(folder / "model", *given, "--out", tmp_path / name, *options)
        report = json.loads((tmp_path / name / "report.json").read_text())
        values.append(next(m["value"] for m in report["figures"] if m["name"] == "text_bits_per_token"))
    assert values[0] != values[1]
    assert values[0] == pytest.approx(values[1], rel=0.05)


def test_a_report_is_written_and_its_command_makes_it_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(
        folder / "model", "--tasks", "likelihood, reconstruction,color_accuracy", "--documents",
        folder / "held.parquet", "--train", folder / "train.parquet", "--out", tmp_path,
        "--limit", "8", "--max-prompts", "3", "--guidance-scale", "2", "--device", "cpu",
    )  # fmt: skip
    shown = capsys.readouterr()
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["model"] == str(folder / "model")
    assert {metric["name"] for metric in written["figures"]} >= {
        "text_bits_per_token", "reconstruction_psnr_db", "colour_asked_colour_drawn",
    }  # fmt: skip
    assert "fitted on training counts, one added" in written["notes"]["text_bits_per_token"]
    assert shown.out.splitlines()[0].split() == [
        "metric", "value", "baseline", "95", "%", "interval", "n", "unit",
    ]  # fmt: skip
    assert shown.out.splitlines()[-1] == (f"report: {tmp_path / 'report.html'}  (as JSON: {tmp_path / 'report.json'})")
    assert "color_accuracy: 3 of 3" in shown.err

    command = shlex.split(written["command"])
    assert command[:2] == ["calumma", "evaluate"]
    _run(*command[2:])
    again = json.loads((tmp_path / "report.json").read_text())
    assert again | {"seconds": 0} == written | {"seconds": 0}


def test_the_list_names_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    from calumma.evaluate.evaluator import TASKS

    _run("--list")
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in TASKS)


def test_missing_arguments_are_named(tmp_path: Path) -> None:
    for given, missing, expected in (
        ([], "MODEL", "MODEL --tasks"),
        (["m"], "--tasks", "MODEL --tasks"),
        (["m", "--tasks", "likelihood"], "--out", "MODEL --tasks --out --documents"),
        (["m", "--tasks", "piqa", "--out", "o"], "--data", "MODEL --tasks --out --data"),
        (["--card", "out"], "MODEL", "MODEL"),
    ):
        with pytest.raises(ConfigError) as caught:
            _run(*given)
        assert str(caught.value) == (
            f"{missing} is missing; expected {expected}. `calumma evaluate --help` shows examples, `--list` the tasks."
        )


def test_a_benchmark_is_measured_and_samples_are_logged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vlm_benchmarks(tmp_path / "data")
    _run(
        folder / "model", "--tasks", "easy_vqa", "--data", tmp_path / "data", "--out",
        tmp_path / "out", "--log-samples", "1", "--num-fewshot", "1", "--device", "cpu",
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "Question: what color is it? Answer:" in shown
    assert "easy_vqa_accuracy_yes_no" in shown
    written = json.loads((tmp_path / "out/report.json").read_text())
    [first] = written["samples"]
    assert [part["type"] for part in first["prompt"]] == ["image", "text", "image", "text"]
    assert (tmp_path / "out" / first["prompt"][0]["path"]).is_file()
    assert written["command"].endswith("--log-samples 1 --device cpu --num-fewshot 1")


def test_a_card_is_written_of_reports_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [folder / "model", "--documents", folder / "held.parquet", "--device", "cpu"]
    _run(*words, "--tasks", "likelihood", "--out", tmp_path / "out")
    _run(folder / "model", "--card", tmp_path / "out", "--train", folder / "train.parquet")
    assert capsys.readouterr().out.endswith(f"model card: {folder / 'model' / 'README.md'}\n")
    assert "| text_bits_per_token |" in (folder / "model" / "README.md").read_text()
    (folder / "model" / "README.md").unlink()


def test_counts_below_one_are_refused(tmp_path: Path) -> None:
    given = ("model", "--tasks", "likelihood", "--documents", "x.parquet", "--out", tmp_path)
    with pytest.raises(ConfigError) as caught:
        _run(*given, "--limit", "0")
    assert str(caught.value) == "--limit 0; expected at least 1. Give more, or leave it out."
    with pytest.raises(ConfigError, match=r"^--max-prompts -1; expected at least 1"):
        _run(*given, "--max-prompts", "-1")


def test_an_unknown_task_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"^task 'x' is not known"):
        _run("nowhere", "--tasks", "x", "--documents", "x.parquet", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_documents_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="nothing found"):
        _run(
            folder / "model", "--tasks", "likelihood", "--documents", tmp_path / "no.parquet",
            "--out", tmp_path, "--device", "cpu",
        )  # fmt: skip


def test_an_image_tokenizer_alone_is_measured_too(
    folder: Path, model_parts: ModelComponents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_parts.tokenizers.image.save(tmp_path / "tokenizer")
    words = ["--documents", folder / "held.parquet", "--out", tmp_path / "out", "--limit", "6"]
    _run(tmp_path / "tokenizer", "--tasks", "reconstruction", *words, "--feature-network", "none")
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {metric["name"] for metric in written["figures"]} >= {
        "reconstruction_psnr_db", "codebook_used",
    }  # fmt: skip
    assert written["skipped"] and "--feature-network none" in written["command"]
    assert "not measured: perceptual distance" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Reconstructions</h2>" in page and "data:image/png;base64," in page
    with pytest.raises(EvaluationError) as caught:
        _run(tmp_path / "tokenizer", "--tasks", "likelihood", *words)
    assert str(caught.value) == (
        "task 'likelihood' needs a model, but this is an image tokenizer alone; expected "
        "reconstruction. Name a model folder, or that task."
    )


def test_the_parts_of_a_task_share_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with evaluate._TaskBars(Path("out"), 1) as bars:
        for done, total in ((1, 2), (2, 2), (1, 2), (2, 2), (3, 3)):
            bars("still-lifes", done, total)
        assert (bars._bar.done, bars._bar.total) == (7, 7)


def test_a_signal_keeps_the_report_of_the_finished_tasks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (folder / "model", "--documents", folder / "held.parquet", "--out", tmp_path, "--device", "cpu")

    def run(at: str) -> str:
        show = evaluate._TaskBars.__call__

        def signal_at(bars: Any, name: str, done: int, total: int) -> None:
            STOP.is_requested = name == at
            show(bars, name, done, total)

        monkeypatch.setattr(evaluate._TaskBars, "__call__", signal_at)
        with pytest.raises(Interrupted) as caught:
            _run(*words, "--tasks", "likelihood,reconstruction,color_accuracy", "--max-prompts", "2")
        monkeypatch.setattr(evaluate._TaskBars, "__call__", show)
        STOP.is_requested = False
        return str(caught.value)

    assert run("encoding") == (
        "stopped by a signal; no report is written. Run the same command again for all of them."
    )
    assert run("color_accuracy") == (
        f"stopped by a signal; {tmp_path}/report.html has 2 of 3 tasks. Run the same command again for all of them."
    )
    written = json.loads((tmp_path / "report.json").read_text())
    names = {metric["name"] for metric in written["figures"]}
    assert {"text_bits_per_token", "reconstruction_psnr_db"} <= names
    assert written["model"] == str(folder / "model")
