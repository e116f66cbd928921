"""The demo on a tiny model: its outputs, and that kills and stops do not change them."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

import calumma
from calumma.cli.main import main
from calumma.documents.readers import read_documents
from calumma.files import sha256
from tests.launch import Finished, SignalOnCall, launch

CONFIG = Path(__file__).with_name("tiny.toml")
NAMES = (
    *("text_bits_per_token", "code_bits_per_token"),
    *("retrieval_text_given_image", "retrieval_image_given_text"),
    *("code_bits_right_minus_shuffled", "colour_asked_colour_drawn"),
    *("reconstruction_psnr_db", "codebook_used"),
)
"""Metric names that every demo's report has."""

WEIGHTS = ("model.safetensors", "vq_decoder.safetensors")
DEATHS = {
    "in the image tokenizer, half-way through a checkpoint": SignalOnCall(
        "calumma.checkpoints.training_checkpoint", "write_json", 2
    ),
    "in the shards, before the record of a shard": SignalOnCall("calumma.shards.cache", "write_json", 2),
    "in pre-training, some steps after a checkpoint": SignalOnCall(
        "calumma.checkpoints.checkpointer", "write_checkpoint", 3
    ),
}
BEFORE_THE_REPORT = SignalOnCall("calumma.demo.measure", "load", 1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def demo(out: Path, *more: str, death: SignalOnCall | None = None) -> Finished:
    """Run `calumma demo` with the tiny config."""
    given = ("demo", "--config", CONFIG, "--out", out, *more)
    return launch(*given, log=out.with_suffix(".log"), signal_on_call=death)


def weights(out: Path) -> list[str]:
    return [sha256(out / "model" / name) for name in WEIGHTS]


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a demo without interruption and return its folder."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    ended = demo(out)
    assert ended.status == 0, ended.output
    assert ended.output.splitlines()[-1] == f"{out}/report.html"
    return out


def test_the_report_has_every_metric_with_its_baseline_and_sample_size(demo_folder: Path) -> None:
    report = json.loads((demo_folder / "report.json").read_text())
    assert set(report) >= {"figures", "model", "command", "seconds"}
    metrics = {metric["name"]: metric for metric in report["figures"]}
    assert set(NAMES) <= set(metrics)
    for name in NAMES:
        assert set(metrics[name]) >= {"name", "value", "baseline", "n", "interval", "unit"}
        assert metrics[name]["n"] > 0
    assert report["model"] == str(demo_folder / "model")
    assert report["seconds"] > 0


def test_the_page_is_self_contained(demo_folder: Path) -> None:
    page = (demo_folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("data:image/") > 10
    named = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]+)|url\(["']?([^)"']+)""", page)
    inside = ("data:", "#", "http://www.w3.org/")
    assert [name for pair in named for name in pair if name and not name.startswith(inside)] == []


def test_every_run_has_a_line_for_every_step(demo_folder: Path) -> None:
    for run, steps in (("image-tokenizer", 12), ("pretrain", 10), ("finetune", 4)):
        lines = (demo_folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))
    names = {"loss", "loss_text", "loss_image", "log_z", "output_norm", "grad_norm"}
    names |= {"tokens_per_second", "data_wait_fraction"}
    last = (demo_folder / "runs/pretrain/metrics.jsonl").read_text().splitlines()[-1]
    assert names <= set(json.loads(last))


def test_transformers_loads_the_model_and_gives_the_same_logits(demo_folder: Path) -> None:
    from transformers import ChameleonForConditionalGeneration

    theirs, info = ChameleonForConditionalGeneration.from_pretrained(demo_folder / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ours = calumma.load(demo_folder / "model", device="cpu")
    vocabulary = ours.vocabulary
    pair = next(iter(read_documents([demo_folder / "documents" / "held-out.parquet"])))
    ids = torch.tensor([ours.encode(list(pair.content))])
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
    found = ours.logits(ids)
    not_codes = [i for i in range(vocabulary.size) if i not in vocabulary.codes]
    torch.testing.assert_close(found[..., not_codes], expected[..., not_codes], rtol=0, atol=1e-4)


def test_again_does_nothing(demo_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*")}
    ended = demo(demo_folder)
    assert ended.status == 0
    assert ended.output.splitlines()[:-1] == [
        f"[{number}/7] {name}: done before"
        for number, name in enumerate(
            ("documents", "image tokenizer", "text tokenizer", "shards", "pre-training",
             "fine-tuning", "report"), start=1,
        )
    ]  # fmt: skip
    after = {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*") if path != demo_folder}
    assert after == {path: time for path, time in before.items() if path != demo_folder}


def test_killed_three_times_and_stopped_once_it_ends_in_the_same_model(demo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    for death in DEATHS.values():
        assert demo(out, death=death).status == -signal.SIGKILL
    stopping = SignalOnCall("calumma.checkpoints.checkpointer", "write_checkpoint", 1, signal.SIGTERM)
    stopped = demo(out, death=stopping)
    assert stopped.status == 3
    last = stopped.output.splitlines()[-1]
    assert last.startswith(f"stopped by a signal; {out}/runs/")
    assert last.endswith("Run the same command to resume.")
    in_report = SignalOnCall("calumma.demo.measure", "load", 1, signal.SIGINT)
    stopped = demo(out, death=in_report)
    assert stopped.status == 3
    assert stopped.output.splitlines()[-1] == (
        f"stopped by a signal; {out}/model is complete, its report is not. Run the same command to resume."
    )
    assert weights(out) == weights(demo_folder)
    assert sha256(out / "shards/shard-00000-000.tokens") == sha256(demo_folder / "shards/shard-00000-000.tokens")


def test_another_seed_ends_in_another_model(demo_folder: Path, tmp_path: Path) -> None:
    demo(tmp_path / "demo", "--seed", "7", death=BEFORE_THE_REPORT)
    here, there = weights(tmp_path / "demo"), weights(demo_folder)
    assert [a != b for a, b in zip(here, there, strict=True)] == [True, True]


def test_inspect_describes_the_demo_and_its_parts(demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for part in (".", "runs/pretrain", "tokenizers", "model", "documents"):
        assert main(["inspect", str(demo_folder / part)]) == 0
        outputs.append(capsys.readouterr().out.splitlines())
    folder, run, tokenizers, model, documents = outputs
    assert folder[:2] == [
        f"{demo_folder}: a demo folder",
        "steps done: 1-documents, 2-image-tokenizer, 3-text-tokenizer, 4-shards, 5-pre-training, "
        "6-fine-tuning, 7-report",
    ]
    assert run[1] == "checkpoints at steps 8, 10; metrics of 10 steps"
    assert tokenizers[1] == model[2] == "vocabulary: 300 text tokens, 16 image codes"
    assert tokenizers[2].startswith("image tokenizer: 16 codes, 16 pixels a side")
    assert model[3].endswith("16 codes per image, with decoder")
    assert documents[0] == f"{demo_folder / 'documents'}: documents"


def test_the_example_of_the_readme_runs(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "demo").symlink_to(demo_folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    sample = names["sample"]
    assert sample.parts
    assert all(isinstance(part, str | PIL.Image.Image) for part in sample.parts)
