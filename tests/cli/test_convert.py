"""Tests of `calumma convert`; the layouts are tested in tests/checkpoints."""

import shutil
from pathlib import Path

import pytest
import torch

import calumma
from calumma.checkpoints.model_folder import ModelComponents, load_model
from calumma.checkpoints.peft_folder import write_adapter
from calumma.cli.convert import size_in_bytes
from calumma.cli.main import main
from calumma.documents.document import Document
from calumma.documents.writers import write_parquet
from calumma.errors import ConfigError
from tests.checkpoints.random_models import folder_bytes, mixed_token_ids, save_random_model
from tests.end_to_end.test_verbs import FINETUNE
from tests.model.test_lora import random_adapter


@pytest.fixture
def own(model_parts: ModelComponents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_random_model(Path("own"), model_parts)
    return Path("own")


def test_round_trip(own: Path, model_parts: ModelComponents, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "own", "release", "--to", "meta", "--shards", "4"]) == 0
    assert capsys.readouterr().out == ("release: 84,864 parameters, from a model folder to meta\n")
    assert main(["convert", "release", "back", "--to", "calumma", "--max-shard-size", "100kB"]) == 0
    assert capsys.readouterr().out == (
        "back: 84,864 parameters, from a release in Meta's layout (4 shards) to calumma\n"
    )
    assert len(list(Path("back").glob("model-*.safetensors"))) == 12
    assert main(["convert", "back", "again", "--to", "calumma"]) == 0
    assert folder_bytes(Path("again")) == folder_bytes(own)
    ids = mixed_token_ids(model_parts)
    assert calumma.load("back").logits(ids).equal(calumma.load("own").logits(ids))


def test_an_adapter_is_merged(own: Path, model_parts: ModelComponents) -> None:
    decoder = load_model(own).decoder
    write_adapter(Path("adapter"), random_adapter(decoder, 1), decoder.config, own)
    assert main(["convert", "own", "merged", "--to", "calumma", "--merge", "adapter"]) == 0
    ids = mixed_token_ids(model_parts)
    adapted = calumma.load("own", adapters={"a": "adapter"})
    merged = calumma.load("merged").logits(ids)
    assert torch.allclose(merged, adapted.logits(ids, adapter="a"), atol=1e-5)
    assert torch.equal(merged, calumma.load("own", adapter="adapter").logits(ids))
    assert not torch.allclose(merged, adapted.logits(ids), atol=1e-2)


def test_missing_image_decoder_is_noted(
    own: Path, model_parts: ModelComponents, capsys: pytest.CaptureFixture[str]
) -> None:
    save_random_model(Path("blind"), model_parts, has_image_decoder=False)
    assert main(["convert", "blind", "release", "--to", "meta"]) == 0
    assert capsys.readouterr().out.endswith("; without an image decoder\n")


@pytest.mark.parametrize("has_decoder", [True, False])
@pytest.mark.parametrize("layout", ["calumma", "meta"])
def test_model_is_finetuned_on_shards_of_its_own_tokenizers(
    layout: str,
    has_decoder: bool,
    model_parts: ModelComponents,
    documents: list[Document],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_random_model(Path("run/model"), model_parts, has_image_decoder=has_decoder)
    write_parquet(Path("docs.parquet"), [d for d in documents if d.source == "chat"])
    Path("finetune.toml").write_text(FINETUNE)
    assert main(["convert", "run/model", "held", "--to", layout]) == 0
    capsys.readouterr()
    tok = str(tmp_path / "tok")
    assert main(["convert", "held", tok, "--to", "tokenizers"]) == 0
    vocabulary = model_parts.tokenizers.text.vocabulary
    kind = "a model folder" if layout == "calumma" else "a release in Meta's layout (one shard)"
    note = "" if has_decoder else "; without an image decoder"
    assert capsys.readouterr().out == (
        f"{tok}: tokenizers, from {kind}: 300 text tokens and 16 image codes; fingerprint "
        f"{vocabulary.fingerprint}{note}\n"
    )
    for line in (
        f"build-shards docs.parquet --tokenizers {tok} --out shards",
        "finetune finetune.toml --out tuned --data.seq-len 64",
    ):
        assert main(line.split()) == 0, line
    assert load_model(Path("tuned/model")).tokenizers.has_image_decoder is has_decoder
    capsys.readouterr()
    assert main(["inspect", tok]) == 0
    summary = capsys.readouterr().out
    assert summary.endswith(", with decoder\n" if has_decoder else ", without decoder\n")
    if not has_decoder:
        assert main(["inspect", "shards", "--html", "rows.html", "--tokenizers", tok]) == 2
        refusal = capsys.readouterr().err
        assert refusal.startswith("error: this image tokenizer has no decoder, ")


@pytest.mark.parametrize(
    "words",
    [
        "build-shards docs.jsonl --tokenizers {} --out out",
        "train-text-tokenizer docs.jsonl --out out --image-tokenizer {}",
        "convert bare back --to calumma --tokenizers {}",
    ],
)
@pytest.mark.parametrize("named", ["own", "release", "release/models/0m"])
def test_model_in_place_of_tokenizers_is_refused(
    words: str, named: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "own", "release", "--to", "meta"]) == 0
    (model,) = Path("release/models").iterdir()
    shutil.copytree("release/models", "bare/models")
    model = model.rename(model.with_name("0m"))
    capsys.readouterr()
    assert main(words.format(named).split()) == 2
    assert capsys.readouterr().err == (
        f"error: {named} is a model folder; expected a folder of tokenizers. Write the model's "
        f"into one with `calumma convert {named} tokenizers --to tokenizers`, and name that.\n"
    )
    assert main(f"convert {named} tokenizers --to tokenizers".split()) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("own out --to meta --shards 0", "--shards 0; expected at least 1."),
        (
            "own out --to calumma --max-shard-size 5Gb/s",
            "--max-shard-size 5Gb/s; expected a number with a unit, such as 5GB or 800MB.",
        ),
        (
            "own own --to meta",
            "own is not empty; expected a folder that does not exist or is empty. Choose another, or delete it.",
        ),
        (
            "own out --to qwen3",
            'own has qk_norm = "layer"; expected "rms" for Qwen3. Use --to calumma, or train with qk_norm = "rms".',
        ),
    ],
)
def test_error_is_one_line_and_writes_nothing(
    words: str, message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *words.split()]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert [path.name for path in Path().iterdir()] == ["own"]


def test_size_in_bytes() -> None:
    assert [size_in_bytes(text) for text in ("5GB", "800 mb", "7", "1kB", "3b")] == [
        *(5_000_000_000, 800_000_000, 7, 1000, 3)
    ]
    for text in ("0", "GB", "-1GB", "1.5GB"):
        with pytest.raises(ConfigError, match="expected a number with a unit"):
            size_in_bytes(text)
