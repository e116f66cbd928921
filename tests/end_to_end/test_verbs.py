"""The pipeline command by command, with documents and TOML configs of a user."""

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
checkpoint = { interval = 2 }
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

SHARED_CONFIG = """
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

PRETRAIN = SHARED_CONFIG + MODEL + "[stage_one.weights]\npairs = 1.0\n[stage_two.weights]\npairs = 1.0\n"
FINETUNE = 'model = "run/model"\ndropout = 0.0\n' + SHARED_CONFIG + "[weights]\nchat = 1.0\n"


NAMES = ["circle", "square", "triangle", "cross", "star", "ring", "apple", "fox", "house", "boat", "tree", "moon"]


def _documents() -> list[Document]:
    documents = []
    for number in range(12):
        image = Image(data=png(number))
        words = Text(f"image {number} of a {NAMES[number % 6]}, large and small, on blue ground")
        documents.append(Document(id=f"pair-{number}", source="pairs", content=(words, image)))
        turns = (Turn("user", (image,)), Turn("assistant", (words,)))
        documents.append(Document(id=f"chat-{number}", source="chat", messages=turns))
    return documents


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the commands on two dozen documents in a folder."""
    folder = tmp_path_factory.mktemp("verbs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_jsonl(Path("docs.jsonl"), _documents())
        for name, text in (("vq", VQ), ("pretrain", PRETRAIN), ("finetune", FINETUNE)):
            Path(f"{name}.toml").write_text(text)
        for line in (
            "train-image-tokenizer vq.toml --out tok --training.lr 2e-3",
            "train-text-tokenizer docs.jsonl --out tok --num-text 300 --image-tokenizer tok",
            "build-shards docs.jsonl --tokenizers tok --out shards",
            "pretrain pretrain.toml --out run --steps 3 --data.global-batch-size=1",
            "finetune finetune.toml --out tuned",
        ):
            assert main(line.split()) == 0, line
    return folder


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def call(line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run a command that must succeed and return the lines that it prints."""
    capsys.readouterr()
    assert main(line.split()) == 0
    return capsys.readouterr().out.splitlines()


def test_each_run_saves_its_resolved_config_with_overrides() -> None:
    config = json.loads(Path("run/config.json").read_text())
    assert (config["steps"], config["data"]["global_batch_size"]) == (3, 1)
    assert config["checkpoint"]["interval"] == 100
    config = json.loads(Path("tok/config.json").read_text())
    assert config["training"]["lr"] == 2e-3


def test_a_repeated_command_finds_its_work_done(capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("tuned/model/model.safetensors").read_bytes()
    assert call("finetune finetune.toml --out tuned", capsys) == ["tuned/model: fine-tuned from run/model"]
    assert Path("tuned/model/model.safetensors").read_bytes() == weights
    line, *account = call("build-shards docs.jsonl --tokenizers tok --out shards", capsys)
    assert line.startswith("shards: 24 sequences, ")
    assert account and all(" as " in each for each in account)


def test_a_run_of_another_config_is_refused_and_leaves_the_old_config(capsys: pytest.CaptureFixture[str]) -> None:
    kept = Path("run/config.json").read_text()
    assert main(["pretrain", "pretrain.toml", "--out", "run", "--steps", "5"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: run/checkpoints/step-00000003 was written by a run with data.")
    assert Path("run/config.json").read_text() == kept


def test_generate_writes_a_document_a_page_and_images(capsys: pytest.CaptureFixture[str]) -> None:
    Path("cat.png").write_bytes(png(40))
    line = "generate tuned/model --image cat.png --prompt draw --out generated --max-new-tokens 60"
    lines = call(f"{line} --seed 3 --guidance-scale 2 --temperature 0.9", capsys)
    assert lines[-1] == "generated/document.html"
    document = json.loads(Path("generated/document.json").read_text())
    assert document["prompt"] == ["[image]", "draw"]
    images = [part["path"] for part in document["content"] if part["type"] == "image"]
    assert all((Path("generated") / path).is_file() for path in images)
    assert Path("generated/document.html").read_text().startswith("<!doctype html>")


def test_evaluate_measures_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    line = "evaluate run/model --tasks likelihood,reconstruction --documents docs.jsonl --out figs"
    lines = call(f"{line} --device cpu --limit 10", capsys)
    assert lines[-1] == "report: figs/report.html  (as JSON: figs/report.json)"
    names = {metric["name"] for metric in json.loads(Path("figs/report.json").read_text())["figures"]}
    assert {"text_bits_per_token", "reconstruction_psnr_db"} <= names


@pytest.mark.parametrize(
    ("path", "first", "second"),
    [
        ("docs.jsonl", "docs.jsonl: documents", "24 documents (12 conversations), 24 images"),
        ("shards", "shards: shards, complete", "24 sequences, "),
        ("run", "run: a training run", "checkpoints at steps 3; metrics of 3 steps"),
        ("run/model", "run/model: a model folder, complete", "decoder: "),
    ],
)
def test_inspect_describes_every_kind_of_folder(
    path: str, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = call(f"inspect {path}", capsys)
    assert lines[0] == first
    assert lines[1].startswith(second)


def test_inspect_describes_tokenizers_in_a_run_folder(capsys: pytest.CaptureFixture[str]) -> None:
    output = "\n".join(call("inspect tok", capsys))
    assert "vocabulary: 300 text tokens, 16 image codes" in output
    assert "image tokenizer: 16 codes, 16 pixels a side, 16 codes per image" in output
    assert "checkpoints at steps 2, 4" in output


def test_inspect_finds_a_broken_shard(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree("shards", tmp_path / "shards")
    path = tmp_path / "shards" / "shard-00000-000.tokens"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert main(["inspect", str(tmp_path / "shards")]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: the file has changed since it was written; expected the original bytes. "
        "Repeat the command that built the shards: intact ones are kept.\n"
    )
