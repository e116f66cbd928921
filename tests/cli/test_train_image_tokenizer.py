"""`calumma train-image-tokenizer`: errors, and resuming after a kill."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from calumma.cli.main import main
from calumma.documents.document import Document, Image, Text
from calumma.documents.writers import write_jsonl
from calumma.files import sha256
from tests.end_to_end.test_verbs import VQ
from tests.images import png
from tests.launch import SignalOnCall, launch


def test_documents_without_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("docs.jsonl"), [Document(id="a", content=(Text("words"),))])
    Path("vq.toml").write_text(VQ)
    assert main(["train-image-tokenizer", "vq.toml", "--out", "vq"]) == 2
    assert capsys.readouterr().err == (
        "error: the documents have no images; expected at least one to train an image tokenizer. "
        "Name files whose documents have image parts.\n"
    )
    assert not Path("vq/config.json").exists()


def test_an_invalid_config_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vq.toml").write_text(VQ)
    words = ["train-image-tokenizer", str(tmp_path / "vq.toml"), "--out", str(tmp_path / "vq")]
    assert main([*words, "--training.steps", "0"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'vq.toml'}: steps=0 and batch_size=2; expected at least 1 of each.\n"
    )


VARIANTS = {
    "ema": ["--training.codebook.update", "ema", "--training.codebook.dead-code-restart-steps", "1",
              "--training.ema-decay", "0.9", "--training.augment.min-crop-scale", "0.5"],
    "cosine": ["--training.codebook.quantizer", "cosine"],
    "ibq": ["--training.codebook.quantizer", "ibq", "--training.codebook.entropy-weight", "0.1"],
}  # fmt: skip


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_a_run_that_is_killed_in_a_step_and_while_saving_ends_in_the_same_weights(
    tmp_path: Path, overrides: list[str]
) -> None:
    config, log = tmp_path / "vq.toml", tmp_path / "log"
    documents = tmp_path / "docs.jsonl"
    write_jsonl(documents, [Document(id=str(n), content=(Image(data=png(n)),)) for n in range(5)])
    config.write_text(VQ.replace("docs.jsonl", str(documents)))
    words = ["train-image-tokenizer", config, *overrides, "--training.steps", "7", "--out"]
    assert launch(*words, tmp_path / "undisturbed", log=log).status == 0

    run = tmp_path / "killed"
    in_a_step = SignalOnCall("calumma.train.image_tokenizer_trainer", "image_tokenizer_step", 4)
    while_saving = SignalOnCall("calumma.checkpoints.training_checkpoint", "write_json", 2)
    for kill in (in_a_step, while_saving):
        assert launch(*words, run, log=log, signal_on_call=kill).status == -signal.SIGKILL
        assert not (run / "image_tokenizer.safetensors").exists()
    assert launch(*words, run, log=log).status == 0
    for name in ("image_tokenizer.safetensors", "image_tokenizer.json"):
        assert sha256(run / name) == sha256(tmp_path / "undisturbed" / name)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 7
