"""`calumma inspect` of things the session's fixtures make; the road's tests show it the rest."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from calumma.checkpoints import safetensors_io
from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
from calumma.checkpoints.model_folder import ModelParts, save_model
from calumma.checkpoints.training_checkpoint import (
    Checkpoint,
    RetentionPolicy,
    flatten_checkpoint,
    write_checkpoint,
)
from calumma.cli.main import main
from calumma.documents.document import Document
from calumma.documents.writers import write_parquet
from calumma.tokens.folder import Tokenizers
from tests.checkpoints.drawn import save_drawn
from tests.documents.image_files import RED


def told(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["inspect", str(path)]) == 0
    return capsys.readouterr().out.splitlines()


def test_documents(
    documents: list[Document], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.parquet"
    write_parquet(path, documents)
    letters = sum(len(document.text) for document in documents)
    assert told(path, capsys) == [
        f"{path}: documents",
        f"40 documents (8 conversations), 24 images, {letters:,} letters of text",
        "sources: pairs 16, text 16, chat 8",
    ]


def test_pictures_that_cannot_be_opened_are_counted_and_the_first_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "no.png").write_bytes(b"no")
    names = ["red.png", "gone.png", "no.png"]
    content = [{"type": "image", "path": name} for name in names]
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"id": "1", "content": content}) + "\n")
    first, counts, _, fault = told(path, capsys)
    assert first == f"{path}: documents"
    assert counts == "1 document (0 conversations), 3 images, 0 letters of text"
    assert fault == (
        f"2 images not opened; the first: {tmp_path}/gone.png: no picture can be read there (No "
        "such file or directory); expected an image file beside the document. Fix the path, or "
        "leave the document out."
    )


def test_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, counts, dropped, head, *sources, vocabulary = told(shards, capsys)
    assert first == f"{shards}: shards, whole"
    assert counts.startswith("40 sequences, ")
    assert counts.endswith(" 24 images of 4 codes")
    assert dropped == "0 documents left out"
    assert head.split()[:3] == ["source", "sequences", "ids"]
    assert [line.split()[:2] for line in sources] == [
        ["pairs", "16"],
        ["text", "16"],
        ["chat", "8"],
    ]
    assert vocabulary.startswith("vocabulary: 300 text ids, 16 image codes, fingerprint ")


def test_a_page_of_documents_at_an_address(
    documents: list[Document], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "d.parquet", documents)
    fsspec.filesystem("memory").put(str(tmp_path / "d.parquet"), "/inspect/d.parquet")
    page = tmp_path / "page.html"
    assert main(["inspect", "memory://inspect", "--page", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("40 documents (8 conversations), 24 images, ")
    assert lines[3] == f"20 documents drawn in {page}"
    assert page.read_text().count("<section>") == 20


def test_a_page_of_shards(
    shards: Path, tokenizers: Tokenizers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers.text.save(tmp_path)
    tokenizers.image.save(tmp_path)
    page = tmp_path / "page.html"
    command = ["inspect", str(shards), "--page", str(page)]
    assert main([*command, "--tokenizers", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(f"20 rows of 1024 ids are drawn in {page}\n")
    assert page.read_text().count("<section>") == 20
    assert "data:image/png;base64," in page.read_text()
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"error: --page {page} of the shards {shards} without --tokenizers; expected the folder of "
        "those that they were made with, to decode them. Name it.\n"
    )
    assert main(["inspect", str(tmp_path), "--page", str(page)]) == 2
    assert capsys.readouterr().err == (
        f"error: --page {page}, and {tmp_path} holds no documents; expected documents, shards or a "
        "config of training. Leave --page out.\n"
    )


def test_a_model(
    model_parts: ModelParts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "model", model_parts)
    lines = told(tmp_path / "model", capsys)
    assert lines[0] == f"{tmp_path / 'model'}: a model folder, whole"
    assert "2 layers of 32, 4 heads, norms pre, rows of at most 128 ids" in lines[1]
    assert lines[3] == ("image tokenizer: 16 pixels to a side, 4 codes a picture, draws")


def test_a_model_in_any_layout_is_looked_at_by_its_headers(
    model_parts: ModelParts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, release, rms = tmp_path / "own", tmp_path / "release", tmp_path / "rms"
    save_drawn(own, model_parts)
    model = open_model(own)
    convert_model(model, own, release, ConversionTarget(layout="meta", num_shards=4))
    convert_model(
        model,
        own,
        tmp_path / "sharded",
        ConversionTarget(layout="calumma", max_shard_bytes=100_000),
    )
    save_drawn(rms, model_parts, qk_norm="rms")
    read: list[int] = []

    def noted(room: memoryview, *rest: object) -> None:
        read.append(len(room))
        fill(room, *rest)  # type: ignore[arg-type]

    fill = safetensors_io._fill
    monkeypatch.setattr(tensor_file, "_fill", noted)
    first, shape, _, image, weights = told(tmp_path / "sharded", capsys)
    assert first == f"{tmp_path / 'sharded'}: a model folder, whole"
    assert shape.startswith("decoder: 84,864 parameters, 2 layers of 64, 8 heads, norms pre, rows")
    assert image.endswith("codes a picture, draws")
    assert weights.endswith(" bytes, the decoder's in 12 files")
    assert told(release, capsys) == [
        f"{release}: a release in Meta's layout (4 shards), whole",
        *(shape, told(own, capsys)[2], image),
        weights.replace("in 12 files", "in 4 files"),
    ]
    first, shape, *_ = told(rms, capsys)
    assert first == f"{rms}: a Qwen3 folder, whole"
    assert "norms pre and rms" in shape
    # Head norms of eight heads by eight channels, in float32.
    assert max(read) <= 8 * 8 * 4


def test_a_model_that_is_not_whole(
    model_parts: ModelParts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path, model_parts)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["inspect", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: is no whole safetensors file (it has ")


def test_a_folder_of_one_tokenizer(
    tokenizers: Tokenizers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers.image.save(tmp_path)
    assert told(tmp_path, capsys) == [
        f"{tmp_path}: tokenizers",
        "image tokenizer: 16 codes, 16 pixels to a side, 4 codes a picture",
    ]


def test_a_run_that_has_saved_nothing_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert told(tmp_path, capsys) == [
        f"{tmp_path}: a training run",
        "checkpoints at steps none yet; metrics of 0 steps",
        "the command that began it goes on from the newest",
    ]


def test_a_run_s_checkpoints_and_model_folders(
    model_parts: ModelParts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        state = {"model": dict(model_parts.decoder.state_dict())}
        write_checkpoint(
            tmp_path,
            flatten_checkpoint(Checkpoint(step, state), "abc"),
            RetentionPolicy(keep_every=1),
        )
    save_model(tmp_path / "models" / "step-00000001", model_parts)
    save_model(tmp_path / "model", model_parts)
    (tmp_path / "models" / "half").mkdir()
    assert told(tmp_path, capsys)[1:3] == [
        "checkpoints at steps 1, 2; metrics of 0 steps",
        "model folders: models/step-00000001, model",
    ]
    one = tmp_path / "checkpoints" / "step-00000001"
    first, second = told(one, capsys)
    size = (one / "tensors.safetensors").stat().st_size
    assert first == f"{one}: a checkpoint of step 1, whole"
    assert second == f"1 file, {size:,} bytes; of a run with the fingerprint abc"
    (one / "tensors.safetensors").unlink()
    assert told(one, capsys) == [
        f"{one}: a checkpoint of step 1, NOT whole",
        "a run passes it over",
    ]


def test_nothing_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "no")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'no'}")


def test_what_calumma_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\1\2")
    assert main(["inspect", str(tmp_path / "a.bin")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'a.bin'}")


@pytest.mark.parametrize("name", ["manifest.json", "pieces.jsonl"])
def test_a_file_of_shards_is_told_of_with_its_folder(
    name: str, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(shards / name)]) == 2
    assert capsys.readouterr().err == (
        f"error: {shards / name}: a file of the folder {shards}; expected the folder, which is told "
        f"of as a whole. Name it: `calumma inspect {shards}`.\n"
    )


def test_documents_in_a_folder_of_ours_are_no_file_of_it(
    documents: list[Document], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "a.parquet", documents)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert told(tmp_path / "a.parquet", capsys)[0] == f"{tmp_path / 'a.parquet'}: documents"
