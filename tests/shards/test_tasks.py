"""Build tasks: the result does not depend on their order or on interruptions."""

import dataclasses
import os
from pathlib import Path

import datasets
import fsspec
import pytest

import calumma.shards.tasks
from calumma.documents.document import Document
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_jsonl, write_parquet
from calumma.errors import DocumentError, ImageError, ShardError
from calumma.runtime import STOP
from calumma.shards.cache import WORK_DIR, BuildCache
from calumma.shards.executors import build_local
from calumma.shards.manifest import Manifest
from calumma.shards.reader import ShardReader
from calumma.shards.tasks import BuildJob, BuildStage, finish_build, write_plan
from calumma.tokens.folder import Tokenizers
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from tests.documents.test_webdataset import tar
from tests.shard_building import build_shards


@pytest.fixture(scope="module")
def folder(tokenizers: Tokenizers, documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tokenizers, and document files of which one cannot be split."""
    folder = tmp_path_factory.mktemp("tasks")
    tokenizers.text.save(folder / "tok")
    tokenizers.image.save(folder / "tok")
    write_parquet(folder / "docs" / "a.parquet", documents[:17])
    write_jsonl(folder / "docs" / "b.jsonl", documents[17:29])
    write_jsonl(folder / "docs" / "c.jsonl.gz", documents[29:])
    return folder


def job(folder: Path, out: Path) -> BuildJob:
    return BuildJob(out=out, tokenizers=folder / "tok", documents_per_shard=5)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != WORK_DIR}


def build(job: BuildJob, documents: Path | str, order: list[int] | None = None) -> list[int]:
    """Run the tasks in some order; return the number of documents of each."""
    tasks = write_plan(job, [documents])
    read = [BuildStage("build", job, tasks)(None, rank, tasks) for rank in order or range(tasks)]
    finish_build(job)
    return read


def test_the_precision_of_the_image_encoder_is_in_the_manifest(
    folder: Path, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    build(dataclasses.replace(job(folder, tmp_path), image_precision="bfloat16"), folder / "docs")
    found = Manifest.load(tmp_path).fingerprints["image_tokenizer"]
    assert found == ImageTokenizer(tokenizers.image.network, precision="bfloat16").fingerprint


def test_tasks_done_in_any_order_give_the_sequences_of_one_build(
    folder: Path, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    build(job(folder, tmp_path / "a"), folder / "docs")
    read = build(job(folder, tmp_path / "b"), folder / "docs", [7, 2, 0, 5, 6, 1, 4, 3])
    assert read == [11, 5, 5, 5, 2, 5, 5, 2]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert "shard-00007-002.tokens" in contents(tmp_path / "a")
    build_shards(read_documents([folder / "docs"]), tokenizers, tmp_path / "c")
    ours, one = ShardReader(tmp_path / "a"), ShardReader(tmp_path / "c")
    assert len(ours) == len(one) == 40
    for number in range(40):
        assert ours.read(number)[0].tolist() == one.read(number)[0].tolist()
        assert ours.source_of(number) == one.source_of(number)


def test_a_complete_task_is_not_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_job = job(folder, tmp_path)
    build(build_job, folder / "docs")
    expected = contents(tmp_path)
    monkeypatch.setattr(calumma.shards.tasks, "read_split", None)
    assert sum(build(build_job, folder / "docs")) == 40
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("suffix", [".tokens", "record", ".crc32"])
def test_a_task_with_a_broken_or_missing_shard_is_repeated(folder: Path, tmp_path: Path, suffix: str) -> None:
    build_job = job(folder, tmp_path)
    build(build_job, folder / "docs")
    expected = contents(tmp_path)
    if suffix == "record":
        BuildCache(tmp_path).path(7).unlink()
    else:
        (tmp_path / f"shard-00007-001{suffix}").write_bytes(b"broken")
    build(build_job, folder / "docs")
    assert contents(tmp_path) == expected


def test_a_file_that_has_changed_is_read_again(folder: Path, documents: list[Document], tmp_path: Path) -> None:
    build_job = job(folder, tmp_path / "out")
    write_parquet(tmp_path / "docs.parquet", documents[:9])
    build(build_job, tmp_path / "docs.parquet")
    write_parquet(tmp_path / "docs.parquet", documents[10:19])
    build(build_job, tmp_path / "docs.parquet")
    build(job(folder, tmp_path / "fresh"), tmp_path / "docs.parquet")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_changed_image_file_is_noticed(folder: Path, documents: list[Document], tmp_path: Path) -> None:
    path = tmp_path / "docs" / "a.jsonl"
    write_jsonl(path, [documents[0]], images="files")
    build_job = job(folder, tmp_path / "out")
    build(build_job, path)
    before = contents(tmp_path / "out")
    image = tmp_path / "docs" / "a-images" / "000000.png"
    image.write_bytes(documents[2].images[0].read_bytes())
    build(build_job, path)
    assert contents(tmp_path / "out") != before


def test_tars_and_saved_datasets_are_built_in_any_order(folder: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    tar(docs / "a.tar", {f"{n}.txt": f"text {n}".encode() for n in range(12)})
    rows = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(7)]})
    rows.save_to_disk(str(docs / "b"))
    assert build(job(folder, tmp_path / "a"), docs) == [5, 5, 2, 5, 2]
    build(job(folder, tmp_path / "b"), docs, [4, 1, 3, 0, 2])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_file_at_an_address_is_read_again_only_when_it_has_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/tasks/a.jsonl", b'{"content": "one"}')
    build_job = job(folder, tmp_path / "out")
    paths = "memory://tasks/a.jsonl"
    build(build_job, paths)
    before = contents(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(calumma.shards.tasks, "read_split", None)
        build(build_job, paths)
    assert contents(tmp_path / "out") == before
    memory.pipe("/tasks/a.jsonl", b'{"content": "two"}')
    build(build_job, paths)
    assert contents(tmp_path / "out") != before


def test_another_size_of_shards_leaves_none_of_the_old_ones(folder: Path, tmp_path: Path) -> None:
    build(job(folder, tmp_path / "a"), folder / "docs")
    larger = dataclasses.replace(job(folder, tmp_path / "a"), documents_per_shard=9)
    build(larger, folder / "docs")
    build(dataclasses.replace(larger, out=tmp_path / "b"), folder / "docs")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_lines_that_are_no_documents_are_counted_with_the_shards(folder: Path, tmp_path: Path) -> None:
    lines = [f'{{"id": "{n}", "content": "a"}}' for n in range(12)]
    for number in (4, 5, 11):
        lines[number] = "{broken"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DocumentError, match=r"a.jsonl:5: not JSON"):
        build(job(folder, tmp_path / "out"), tmp_path / "a.jsonl")
    skipping = dataclasses.replace(job(folder, tmp_path / "out"), on_error="drop")
    assert sum(build(skipping, tmp_path / "a.jsonl")) == 12
    manifest = ShardReader(tmp_path / "out").manifest
    assert (manifest.total.num_sequences, manifest.dropped) == (9, {"unreadable": 3})
    quarantine = (tmp_path / "out" / "quarantine.jsonl").read_text()
    assert [f"a.jsonl:{n}: " in quarantine for n in (5, 6, 12)] == [True] * 3


def test_an_invalid_image_leaves_its_task_incomplete(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": [{"type": "image", "base64": "bm8="}]}')
    build_job = job(folder, tmp_path / "out")
    with pytest.raises(ImageError, match="not an image"):
        build(build_job, tmp_path / "a.jsonl")
    with pytest.raises(ShardError) as caught:
        finish_build(build_job)
    assert str(caught.value) == (
        f"{tmp_path / 'out'}: task 0 of 1 is not complete; expected all of them. Repeat the same "
        "command: finished shards are kept."
    )


def test_a_stopping_build_starts_no_task(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_job = job(folder, tmp_path)
    tasks = write_plan(build_job, [folder / "docs"])
    (build_job.work_dir / "stop").touch()
    assert BuildStage("build", build_job, tasks)(None, 0, tasks) == 0
    write_plan(build_job, [folder / "docs"])
    assert BuildStage("build", build_job, tasks)(None, 0, tasks) == 5
    monkeypatch.setattr(STOP, "is_requested", True)
    assert BuildStage("build", build_job, tasks)(None, 1, tasks) == 0


def test_tokenizers_that_have_changed_are_loaded_again(
    folder: Path, documents: list[Document], image_tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    """In one process, such as a notebook, and at one path."""
    write_jsonl(tmp_path / "docs.jsonl", documents)
    tokenizers = tmp_path / "tokenizers"
    tokenizers.mkdir()
    image_tokenizer.save(tokenizers)
    fingerprints = []
    for num_text in (280, 270):
        texts = [document.text for document in documents]
        TextTokenizer.train(texts, num_text=num_text, num_codes=16).save(tokenizers)
        job = BuildJob(out=tmp_path / "shards", tokenizers=tokenizers)
        build_local(job, [tmp_path / "docs.jsonl"], 1)
        fingerprints.append(Manifest.load(job.out).vocabulary.fingerprint)
        assert fingerprints[-1] == Tokenizers.load(tokenizers).text.vocabulary.fingerprint
    assert fingerprints[0] != fingerprints[1]


def test_files_without_documents_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DocumentError, match="no document found"):
        build(job(folder, tmp_path / "out"), tmp_path / "a.jsonl")


def test_the_last_job_of_a_cluster_writes_the_manifest(folder: Path, tmp_path: Path) -> None:
    build_job = job(folder, tmp_path)
    tasks = write_plan(build_job, [folder / "docs"])
    for rank in range(tasks):
        BuildStage("build", build_job, tasks)(None, rank, tasks)
    os.utime(build_job.work_dir / "plan.json")
    BuildStage("finish", build_job, 1)(None, 0, 1)
    assert len(ShardReader(tmp_path)) == 40
