"""Statistics of the data mixture of a training config."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from calumma.cli.inspect.mixture_summary import config_lines
from calumma.cli.main import main
from calumma.documents.preferences import write_preferences
from calumma.tokens.folder import Tokenizers
from tests.train.test_dpo import PAIRS

PRETRAIN = """
shards = "{shards}"
tokenizers = "{tok}"
[data]
seq_len = 64
[stage_one.weights]
pairs = 1.0
text = 3.0
[stage_two.weights]
pairs = 1.0
"""
FINETUNE = """
shards = "{shards}"
tokenizers = "{tok}"
model = "model"
[data]
seq_len = 64
[weights]
chat = 1.0
"""


def test_each_stage_is_measured_and_sequences_are_shown(shards: Path, tokenizers: Tokenizers, tmp_path: Path) -> None:
    tokenizers.text.save(tmp_path / "tok")
    tokenizers.image.save(tmp_path / "tok")
    path, page = tmp_path / "run.toml", tmp_path / "sequences.html"
    path.write_text(PRETRAIN.format(shards=shards, tok=tmp_path / "tok"))
    lines = config_lines(path, page)
    assert lines[0] == f"{path}: a config of stage one and stage two on {shards}"
    assert [line for line in lines if line.startswith("stage")] == ["stage one:", "stage two:"]
    assert lines[2].startswith("256 rows of 64 tokens: ")
    assert [line.split()[0] for line in lines[3:6]] == ["source", "pairs", "text"]
    assert lines[-1] == f"20 packed sequences of stage two are shown in {page}"
    assert page.read_text(encoding="utf-8").count("<section>") == 20


def test_a_config_of_fine_tuning_has_one_stage(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "tune.toml"
    path.write_text(FINETUNE.format(shards=shards, tok=tmp_path / "tok"))
    first, stage, *lines = config_lines(path, None)
    assert (first, stage) == (f"{path}: a config of fine-tuning on {shards}", "fine-tuning:")
    assert lines[-2] == "text+image->text      100.0%"
    assert lines[-1].startswith("unbalanced: 0.0% of the answers contain images; ")


def test_categories_and_pairings_set_the_mixture(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "tune.toml"
    base = FINETUNE.format(shards=shards, tok=tmp_path / "tok").split("[weights]")[0]
    categories = "[categories.visual_chat]\nchat = 1.0\n[categories.text]\ntext = 1.0\n"
    shares = "[category_weights]\nvisual_chat = 9.0\n"
    path.write_text(base + categories + shares)
    assert "text+image->text       90.0%" in config_lines(path, None)
    path.write_text('balance = "pairings"\n' + base + categories + shares)
    assert "text+image->text       50.0%" in config_lines(path, None)


def test_a_dpo_config_shows_its_pairs(tmp_path: Path) -> None:
    path, pairs = tmp_path / "dpo.toml", tmp_path / "pairs.jsonl"
    write_preferences(pairs, PAIRS)
    path.write_text(f'model = "tuned/model"\n[dpo]\npairs = ["{pairs}"]\n')
    assert config_lines(path, None) == [
        f"{path}: a DPO config that starts from tuned/model",
        "4 pairs; images in 4 chosen and 0 rejected answers",
    ]


@pytest.mark.parametrize("fault", ["flipped", "missing"])
def test_training_on_corrupt_shards_is_refused(
    fault: str, shards: Path, tokenizers: Tokenizers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers.text.save(tmp_path / "tok")
    tokenizers.image.save(tmp_path / "tok")
    broken = tmp_path / "shards"
    shutil.copytree(shards, broken)
    tokens = broken / "shard-00000-000.tokens"
    if fault == "flipped":
        content = bytearray(tokens.read_bytes())
        for end in np.fromfile(broken / "shard-00000-000.offsets", "<i8").tolist():
            content[2 * end - 4] ^= 1  # one bit in every sequence
        tokens.write_bytes(content)
    else:
        tokens.unlink()
    path = tmp_path / "run.toml"
    path.write_text("steps = 4\n" + PRETRAIN.format(shards=broken, tok=tmp_path / "tok"))
    assert main(["pretrain", str(path), "--out", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"error: {tokens}")
    assert line.endswith("intact ones are kept.")
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not metrics.is_file() or metrics.read_text() == ""
