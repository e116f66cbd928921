"""`calumma inspect` of every kind of file and folder."""

import json
from pathlib import Path

import fsspec
import pytest
from torch import Tensor

from calumma.checkpoints import safetensors_io
from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.checkpoints.training_checkpoint import RetentionPolicy, flatten_checkpoint, write_checkpoint
from calumma.cli.main import main
from calumma.documents.document import Document
from calumma.documents.writers import write_parquet
from calumma.tokens.folder import Tokenizers
from tests.checkpoints.random_models import save_random_model
from tests.documents.image_files import RED


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["inspect", str(path)]) == 0
    return capsys.readouterr().out.splitlines()


def test_documents(documents: list[Document], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.parquet"
    write_parquet(path, documents)
    letters = sum(len(document.text) for document in documents)
    assert inspect(path, capsys) == [
        f"{path}: documents",
        f"40 documents (8 conversations), 24 images, {letters:,} characters of text",
        "sources: pairs 16, text 16, chat 8",
        "read as images: content 16, messages 8",
        "read as text: content 32, messages 16",
        "read as id, source and license: id 40, source 40",
    ]


def test_unreadable_images_are_counted_and_the_first_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "no.png").write_bytes(b"no")
    names = ["red.png", "gone.png", "no.png"]
    content = [{"type": "image", "path": name} for name in names]
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"id": "1", "content": content}) + "\n")
    first, counts, *_, fault = inspect(path, capsys)
    assert first == f"{path}: documents"
    assert counts == "1 document (0 conversations), 3 images, 0 characters of text"
    assert fault == (
        f"2 images unreadable; the first: {tmp_path}/gone.png: the image cannot be read (No such "
        "file or directory); expected an image file at this path. Fix the path, or drop the "
        "document."
    )


def test_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, counts, dropped, head, *sources, vocabulary = inspect(shards, capsys)
    assert first == f"{shards}: shards, complete"
    assert counts.startswith("40 sequences, ")
    assert counts.endswith(" 24 images of 4 codes")
    assert dropped == "0 documents dropped"
    assert head.split()[:3] == ["source", "sequences", "tokens"]
    assert [line.split()[:2] for line in sources] == [["pairs", "16"], ["text", "16"], ["chat", "8"]]
    assert vocabulary.startswith("vocabulary: 300 text tokens, 16 image codes, fingerprint ")


def test_a_page_of_documents_at_a_url(
    documents: list[Document], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "d.parquet", documents)
    fsspec.filesystem("memory").put(str(tmp_path / "d.parquet"), "/inspect/d.parquet")
    page = tmp_path / "page.html"
    assert main(["inspect", "memory://inspect", "--html", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("40 documents (8 conversations), 24 images, ")
    assert lines[-1] == f"20 documents shown in {page}"
    assert page.read_text().count("<section>") == 20


def test_a_page_of_shards(
    shards: Path, tokenizers: Tokenizers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers.text.save(tmp_path)
    tokenizers.image.save(tmp_path)
    page = tmp_path / "page.html"
    command = ["inspect", str(shards), "--html", str(page)]
    assert main([*command, "--tokenizers", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(f"20 packed sequences of 1024 tokens are shown in {page}\n")
    assert page.read_text().count("<section>") == 20
    assert "data:image/png;base64," in page.read_text()
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"error: --html {page} of the shards {shards} without --tokenizers; expected the "
        "tokenizers that they were built with. Add --tokenizers DIR.\n"
    )
    assert main(["inspect", str(tmp_path), "--html", str(page)]) == 2
    assert capsys.readouterr().err == (
        f"error: --html {page} of {tmp_path}, which has no documents; expected documents, shards "
        "or a training config. Omit --html.\n"
    )


def test_a_model(model_parts: ModelComponents, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "model", model_parts)
    lines = inspect(tmp_path / "model", capsys)
    assert lines[0] == f"{tmp_path / 'model'}: a model folder, complete"
    assert "2 layers of width 32, 4 heads, pre-norm, QK LayerNorm, max_seq_len 128" in lines[1]
    assert lines[3] == ("image tokenizer: 16 pixels a side, 4 codes per image, with decoder")


def test_of_a_model_in_any_layout_only_headers_are_read(
    model_parts: ModelComponents, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, release, rms = tmp_path / "own", tmp_path / "release", tmp_path / "rms"
    save_random_model(own, model_parts)
    model = open_model(own)
    convert_model(model, own, release, ConversionTarget(layout="meta", num_shards=4))
    convert_model(model, own, tmp_path / "sharded", ConversionTarget(layout="calumma", max_shard_bytes=100_000))
    save_random_model(rms, model_parts, qk_norm="rms")
    num_elements: list[int] = []
    read = safetensors_io._read_tensor

    def record(path: Path, name: str) -> Tensor:
        tensor = read(path, name)
        num_elements.append(tensor.numel())
        return tensor

    monkeypatch.setattr(safetensors_io, "_read_tensor", record)
    first, shape, _, image, weights = inspect(tmp_path / "sharded", capsys)
    assert first == f"{tmp_path / 'sharded'}: a model folder, complete"
    assert shape.startswith("decoder: 84,864 parameters, 2 layers of width 64, 8 heads, pre-norm, ")
    assert image.endswith("codes per image, with decoder")
    assert weights.endswith(" bytes, the decoder in 12 files")
    assert inspect(release, capsys) == [
        f"{release}: a release in Meta's layout (4 shards), complete",
        *(shape, inspect(own, capsys)[2], image),
        weights.replace("in 12 files", "in 4 files"),
    ]
    first, shape, *_ = inspect(rms, capsys)
    assert first == f"{rms}: a Qwen3 folder, complete"
    assert "pre-norm, QK RMSNorm" in shape
    # The largest tensors that are read are QK-norm weights of eight heads by eight channels.
    assert max(num_elements, default=0) <= 8 * 8


def test_an_incomplete_model(model_parts: ModelComponents, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path, model_parts)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["inspect", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: is not a complete safetensors file (")


def test_a_folder_of_one_tokenizer(tokenizers: Tokenizers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers.image.save(tmp_path)
    assert inspect(tmp_path, capsys) == [
        f"{tmp_path}: tokenizers",
        "image tokenizer: 16 codes, 16 pixels a side, 4 codes per image, with decoder",
    ]


def test_a_run_without_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert inspect(tmp_path, capsys) == [
        f"{tmp_path}: a training run",
        "checkpoints at steps none yet; metrics of 0 steps",
        "run the same command to resume from the newest",
    ]


def test_a_run_s_checkpoints_and_model_folders(
    model_parts: ModelComponents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        state = {"model": dict(model_parts.decoder.state_dict())}
        write_checkpoint(tmp_path, flatten_checkpoint(step, state, {"seed": 0}), RetentionPolicy(keep_every=1))
    save_model(tmp_path / "models" / "step-00000001", model_parts)
    save_model(tmp_path / "model", model_parts)
    (tmp_path / "models" / "half").mkdir()
    assert inspect(tmp_path, capsys)[1:3] == [
        "checkpoints at steps 1, 2; metrics of 0 steps",
        "model folders: models/step-00000001, model",
    ]
    one = tmp_path / "checkpoints" / "step-00000001"
    first, second = inspect(one, capsys)
    size = (one / "tensors.safetensors").stat().st_size
    assert first == f"{one}: a checkpoint of step 1, complete"
    assert second == f"1 file, {size:,} bytes"
    (one / "tensors.safetensors").unlink()
    assert inspect(one, capsys) == [f"{one}: a checkpoint of step 1, INCOMPLETE", "a run ignores it"]


def test_a_missing_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "no")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'no'}")


def test_an_unknown_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\1\2")
    assert main(["inspect", str(tmp_path / "a.bin")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'a.bin'}")


@pytest.mark.parametrize("name", ["manifest.json", "shards.jsonl"])
def test_a_file_of_shards_is_refused(name: str, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shards / name)]) == 2
    assert capsys.readouterr().err == (
        f"error: {shards / name}: a file of the folder {shards}; expected the folder. "
        f"Run `calumma inspect {shards}`.\n"
    )


def test_documents_in_a_tokenizer_folder_are_documents(
    documents: list[Document], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "a.parquet", documents)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert inspect(tmp_path / "a.parquet", capsys)[0] == f"{tmp_path / 'a.parquet'}: documents"


def test_a_saved_dataset_is_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "saved")
    lines = inspect(tmp_path / "saved", capsys)
    assert lines[1].startswith("2 documents (0 conversations), 0 images, 2 characters of text")
