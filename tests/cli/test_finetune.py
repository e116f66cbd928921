"""`calumma finetune`: SFT, DPO, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.cli.main import main
from calumma.documents.document import Document, Text, Turn
from calumma.documents.preferences import write_preferences
from calumma.documents.writers import write_jsonl
from calumma.files import read_json
from calumma.tokens.folder import Tokenizers
from tests.end_to_end.test_verbs import FINETUNE
from tests.train.test_dpo import PAIRS


def test_a_missing_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("turns.toml").write_text(FINETUNE)
    assert main(["finetune", "turns.toml", "--out", "tuned"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: run/model")


def test_a_config_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "turns.toml"
    path.write_text(FINETUNE.replace('model = "run/model"\n', ""))
    assert main(["finetune", str(path), "--out", str(tmp_path / "tuned")]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: model is missing; expected a value. Set it there or with --model VALUE.\n"
    )


@pytest.fixture
def ready(
    model_parts: ModelComponents, tokenizers: Tokenizers, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Create a folder with everything that `FINETUNE` names, and preference pairs."""
    monkeypatch.chdir(tmp_path)
    save_model(Path("run/model"), model_parts)
    tokenizers.text.save(Path("tok"))
    tokenizers.image.save(Path("tok"))
    Path("shards").symlink_to(shards)
    Path("turns.toml").write_text(FINETUNE)
    write_preferences(Path("pairs.jsonl"), PAIRS)


@pytest.mark.usefixtures("ready")
def test_an_unbalanced_mixture_is_warned_of_and_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainable.blocks", "lora", "--trainable.lora-rank", "2", "--trainable.vocab-rows", "image"]
    assert main(["finetune", "turns.toml", "--out", "tuned", *words]) == 0
    printed = capsys.readouterr()
    (warning,) = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert warning.startswith("warning: unbalanced: 0.0% of the answers contain images; ")
    record = read_json(Path("tuned/balance.json"))
    assert record["pairings"] == {"text+image->text": 1.0}
    assert f"warning: {record['warning']}" == warning
    assert printed.out == "tuned/model: fine-tuned from run/model\n"
    assert Path("tuned/adapter/adapter_model.safetensors").is_file()
    load_model(Path("tuned/model"))


DPO = """
model = "run/model"
steps = 2
batch_size = 2
seq_len = 64
device = "cpu"
[dpo]
pairs = ["pairs.jsonl"]
"""


@pytest.mark.usefixtures("ready")
def test_a_config_with_a_dpo_table_selects_dpo(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dpo.toml").write_text(DPO)
    assert main(["finetune", "dpo.toml", "--out", "liked", "--dpo.beta", "0.3"]) == 0
    assert capsys.readouterr().out == ("liked/model: tuned by DPO from run/model\n")
    assert read_json(Path("liked/config.json"))["dpo"] == {
        "pairs": ["pairs.jsonl"], "beta": 0.3, "label_smoothing": 0.0, "sft_weight": 0.0
    }  # fmt: skip
    load_model(Path("liked/model"))


@pytest.mark.usefixtures("ready")
def test_the_former_name_of_the_dpo_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dpo.toml").write_text(DPO.replace("[dpo]", "[preference]"))
    assert main(["finetune", "dpo.toml", "--out", "liked"]) == 2
    assert capsys.readouterr().err == "error: dpo.toml: unknown field preference.pairs; it is now dpo.pairs.\n"


@pytest.mark.usefixtures("ready")
def test_a_model_and_documents_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    turns = (Turn("user", (Text("draw"),)), Turn("assistant", (Text("no"),)))
    write_jsonl(Path("my.jsonl"), [Document(id=f"d{n}", messages=turns) for n in range(4)])
    line = "finetune --steps 2 --model run/model --documents my.jsonl --out out/tuned --device cpu"
    assert main([*line.split(), "--data.seq-len", "64"]) == 0
    assert load_model(Path("out/tuned/model")).decoder.config.num_layers
    assert Path("out/tuned/shards/manifest.json").is_file()
    assert read_json(Path("out/tuned/config.json"))["steps"] == 2
    capsys.readouterr()
    assert main([*line.split(), "--data.seq-len", "64"]) == 0, "the same again has nothing to do"


def test_neither_a_config_nor_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--steps", "2", "--out", str(tmp_path / "tuned")]) == 2
    assert capsys.readouterr().err == (
        "error: neither CONFIG nor --model and --documents are given; expected one of the two. "
        "`calumma finetune --help` shows examples.\n"
    )


@pytest.mark.usefixtures("ready")
def test_a_config_names_documents_and_no_tokenizers() -> None:
    turns = (Turn("user", (Text("draw"),)), Turn("assistant", (Text("no"),)))
    write_jsonl(Path("my.jsonl"), [Document(id=f"d{n}", messages=turns) for n in range(4)])
    config = FINETUNE.replace('shards = "shards"', 'documents = ["my.jsonl"]')
    config = config.replace('tokenizers = "tok"\n', "").replace("[weights]\nchat = 1.0\n", "")
    Path("turns.toml").write_text(config)
    assert main(["finetune", "turns.toml", "--out", "tuned"]) == 0
    assert Path("tuned/shards/manifest.json").is_file()


@pytest.mark.usefixtures("ready")
def test_a_dry_run_checks_the_sources(capsys: pytest.CaptureFixture[str]) -> None:
    Path("turns.toml").write_text(FINETUNE.replace("chat = 1.0", "chats = 1.0"))
    assert main(["finetune", "turns.toml", "--out", "tuned", "--dry-run"]) == 2
    assert 'source "chats"' in capsys.readouterr().err
    assert not Path("tuned").exists()
