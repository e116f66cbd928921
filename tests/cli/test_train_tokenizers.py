"""`calumma train-text-tokenizer`."""

import json
import signal
from pathlib import Path

import pytest

from calumma.cli.main import main
from calumma.documents.document import Document, Image, Text
from calumma.documents.writers import write_jsonl, write_parquet
from calumma.files import sha256
from calumma.tokens.folder import Tokenizers
from calumma.tokens.text import TextTokenizer
from tests.end_to_end.test_verbs import VQ
from tests.images import png
from tests.launch import SignalOnCall, launch


@pytest.fixture
def docs(documents: list[Document], tmp_path: Path) -> str:
    write_parquet(tmp_path / "d.parquet", documents)
    return str(tmp_path / "d.parquet")


def train(*words: str) -> int:
    return main(["train-text-tokenizer", *words, "--num-text", "280"])


def test_the_codes_are_as_many_as_the_image_tokenizer_has(
    docs: str, tokenizers: Tokenizers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers.image.save(tmp_path / "vq")
    assert train(docs, "--out", str(tmp_path / "t"), "--image-tokenizer", str(tmp_path / "vq")) == 0
    vocabulary = TextTokenizer.load(tmp_path / "t").vocabulary
    assert (vocabulary.num_text, vocabulary.num_codes) == (280, 16)
    assert capsys.readouterr().out == (
        f"{tmp_path / 't'}/tokenizer.json: {vocabulary.size} tokens, 280 of text and 16 image "
        f"codes; fingerprint {vocabulary.fingerprint}\n"
    )


def test_the_number_of_codes_is_given_once(docs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(docs, "--out", str(tmp_path), "--num-codes", "4", "--image-tokenizer", "x") == 2
    assert train(docs, "--out", str(tmp_path)) == 2
    both, neither = capsys.readouterr().err.splitlines()
    assert both.startswith("error: argument --image-tokenizer: not allowed with argument --num-c")
    assert neither.startswith("error: one of the arguments --num-codes --image-tokenizer is requi")


def test_the_vocabulary_takes_what_the_text_gives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "ab ab"}\n')
    words = [str(tmp_path / "d.jsonl"), "--out", str(tmp_path / "t"), "--num-codes", "4"]
    assert main(["train-text-tokenizer", *words]) == 0
    num_text = TextTokenizer.load(tmp_path / "t").vocabulary.num_text
    assert 256 < num_text < 4096
    assert f"the texts give {num_text} text tokens, not 4096; more text" in caplog.text


def test_the_image_tokenizer_is_copied_into_the_folder(docs: str, tokenizers: Tokenizers, tmp_path: Path) -> None:
    tokenizers.image.save(tmp_path / "vq")
    assert train(docs, "--out", str(tmp_path / "t"), "--image-tokenizer", str(tmp_path / "vq")) == 0
    assert Tokenizers.load(tmp_path / "t").image.fingerprint == tokenizers.image.fingerprint
    for file in (tmp_path / "vq").iterdir():
        assert (tmp_path / "t" / file.name).read_bytes() == file.read_bytes()


def test_image_sizes_are_in_the_folder(docs: str, tokenizers: Tokenizers, tmp_path: Path) -> None:
    tokenizers.image.save(tmp_path / "vq")
    words = ["train-text-tokenizer", docs, "--out", str(tmp_path / "out"), "--num-text", "256"]
    sizes = ["--image-sizes", "16x16,24x16"]
    main([*words, "--image-tokenizer", str(tmp_path / "vq"), *sizes])
    found = Tokenizers.load(tmp_path / "out").text.vocabulary.image_sizes
    assert found is not None
    assert (found.grids, found.newline) == (((2, 2), (2, 3)), 24)


def test_image_sizes_need_the_image_tokenizer(docs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train-text-tokenizer", docs, "--out", str(tmp_path), "--num-codes", "16", "--image-sizes", "any"]
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: --image-sizes any without --image-tokenizer; expected it, as its cells decide which sizes are "
        "possible. Add it."
    )


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    assert train("nothing.jsonl", "--out", str(tmp_path / "t"), "--num-codes", "4") == 2
    assert not (tmp_path / "t").exists()


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


def test_documents_with_unreadable_images_are_dropped_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = [Document(id=str(n), content=(Image(data=png(n, 16)),)) for n in range(2)]
    write_jsonl(Path("docs.jsonl"), [*good, Document(id="bad", content=(Image(data=b"no"),))])
    Path("vq.toml").write_text(VQ)
    assert main(["train-image-tokenizer", "vq.toml", "--out", "vq", "--skip-invalid"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "dropped 1 (unreadable), listed in vq/quarantine.jsonl"
    assert json.loads(Path("vq/quarantine.jsonl").read_text())["id"] == "bad"


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
