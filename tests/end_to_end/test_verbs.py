"""The same road verb by verb: documents of one's own, and configs in TOML files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from calumma.cli.main import main
from calumma.documents.document import Document, Image, Text, Turn
from calumma.documents.writers import write_jsonl
from tests.images import png

VQ = """
documents = ["docs.jsonl"]
checkpoint.interval = 2
[training]
steps = 4
batch_size = 2
[training.network]
resolution = 16
base_channels = 32
channel_multipliers = [1, 1, 1]
num_res_blocks = 1
latent_channels = 8
code_dim = 4
num_codes = 16
"""

MODEL = """
[model]
model_dim = 32
num_layers = 1
num_heads = 2
num_kv_heads = 2
feed_forward_dim = 48
max_seq_len = 128
"""

STREAM = """
shards = "shards"
tokenizers = "tok"
steps = 2
device = "cpu"
[data]
seq_len = 96
global_batch_size = 2
pack_window = 2
[schedule]
warmup_steps = 1
"""

PRETRAIN = STREAM + MODEL + "[stage_one.weights]\npairs = 1.0\n[stage_two.weights]\npairs = 1.0\n"
FINETUNE = 'model = "run/model"\ndropout = 0.0\n' + STREAM + "[weights]\nchat = 1.0\n"


NAMES = [
    "circle",
    "square",
    "triangle",
    "cross",
    "star",
    "ring",
    "apple",
    "fox",
    "house",
    "boat",
    "tree",
    "moon",
]


def _documents() -> list[Document]:
    made = []
    for number in range(12):
        picture = Image(data=png(number))
        words = Text(f"picture {number} of a {NAMES[number % 6]}, large and small, on blue ground")
        made.append(Document(id=f"pair-{number}", source="pairs", content=(words, picture)))
        turns = (Turn("user", (picture,)), Turn("assistant", (words,)))
        made.append(Document(id=f"chat-{number}", source="chat", messages=turns))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the verbs make of two dozen documents."""
    folder = tmp_path_factory.mktemp("verbs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_jsonl(Path("docs.jsonl"), _documents())
        for name, text in (("vq", VQ), ("pretrain", PRETRAIN), ("finetune", FINETUNE)):
            Path(f"{name}.toml").write_text(text)
        for line in (
            "train-image-tokenizer vq.toml --out tok --training.peak-rate 2e-3",
            "train-text-tokenizer docs.jsonl --out tok --num-text 300 --image-tokenizer tok",
            "build-shards docs.jsonl --tokenizers tok --out shards",
            "pretrain pretrain.toml --out run --steps 3 --data.global-batch-size=1",
            "finetune finetune.toml --out tuned",
        ):
            assert main(line.split()) == 0, line
    return folder


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def call(line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a command prints; it must succeed."""
    capsys.readouterr()
    assert main(line.split()) == 0
    return capsys.readouterr().out.splitlines()


def test_each_run_keeps_its_resolved_config_with_what_the_command_line_changed() -> None:
    kept = json.loads(Path("run/config.json").read_text())
    assert (kept["steps"], kept["stream"]["num_rows"], kept["save_every"]) == (3, 1, 100)
    kept = json.loads(Path("tok/config.json").read_text())
    assert kept["training"]["peak_rate"] == 2e-3


def test_again_every_verb_finds_its_work_done(capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("tuned/model/model.safetensors").read_bytes()
    assert call("finetune finetune.toml --out tuned", capsys) == [
        "tuned/model: fine-tuned from run/model"
    ]
    assert Path("tuned/model/model.safetensors").read_bytes() == weights
    (told,) = call("build-shards docs.jsonl --tokenizers tok --out shards", capsys)
    assert told.startswith("shards: 24 sequences, ")


def test_a_run_of_another_config_is_refused_and_leaves_the_old_config(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = Path("run/config.json").read_text()
    assert main(["pretrain", "pretrain.toml", "--out", "run", "--steps", "5"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: run/checkpoints/step-00000003 was written by a run of another")
    assert Path("run/config.json").read_text() == kept


def test_generate_writes_a_document_a_page_and_pictures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("cat.png").write_bytes(png(40))
    line = "generate tuned/model --image cat.png --prompt draw --out drawn --max-new-tokens 60"
    told = call(f"{line} --seed 3 --guidance 2 --temperature 0.9", capsys)
    assert told[-1] == "drawn/document.html"
    document = json.loads(Path("drawn/document.json").read_text())
    assert document["prompt"] == ["[picture]", "draw"]
    pictures = [part["path"] for part in document["content"] if part["type"] == "image"]
    assert all((Path("drawn") / path).is_file() for path in pictures)
    assert Path("drawn/document.html").read_text().startswith("<!doctype html>")


def test_evaluate_measures_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    line = "evaluate run/model --tasks likelihood,reconstruction --documents docs.jsonl --out figs"
    told = call(f"{line} --device cpu --limit 10", capsys)
    assert told[-1] == "report: figs/report.html  (for machines: figs/report.json)"
    names = {
        figure["name"] for figure in json.loads(Path("figs/report.json").read_text())["figures"]
    }
    assert {"text_bits_per_token", "reconstruction_psnr_db"} <= names


@pytest.mark.parametrize(
    ("path", "first", "second"),
    [
        ("docs.jsonl", "docs.jsonl: documents", "24 documents (12 conversations), 24 images"),
        ("shards", "shards: shards, whole", "24 sequences, "),
        ("run", "run: a training run", "checkpoints at steps 3; metrics of 3 steps"),
        ("run/model", "run/model: a model folder, whole", "decoder: "),
    ],
)
def test_inspect_says_what_it_is(
    path: str, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = call(f"inspect {path}", capsys)
    assert told[0] == first
    assert told[1].startswith(second)


def test_inspect_sees_tokenizers_in_a_run_folder(capsys: pytest.CaptureFixture[str]) -> None:
    told = "\n".join(call("inspect tok", capsys))
    assert "vocabulary: 300 text ids, 16 image codes" in told
    assert "image tokenizer: 16 codes, 16 pixels to a side, 16 codes a picture" in told
    assert "checkpoints at steps 2, 4" in told


def test_inspect_finds_a_broken_shard(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree("shards", tmp_path / "shards")
    ids = tmp_path / "shards" / "shard-00000-000.ids"
    whole = ids.read_bytes()
    ids.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["inspect", str(tmp_path / "shards")]) == 2
    assert capsys.readouterr().err == (
        f"error: {ids}: the file is not what was written; expected its bytes unchanged. Build the "
        "shards again: what is whole is kept.\n"
    )
