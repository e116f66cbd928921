"""Invalid input and unwritable folders: one error line that names the file, exit status 2."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from calumma.cli.main import main
from calumma.documents.document import Document, Image, Text
from calumma.documents.writers import write_jsonl, write_parquet
from calumma.tokens.folder import Tokenizers
from tests.end_to_end.test_verbs import PRETRAIN, VQ
from tests.images import png

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.toml"


@pytest.fixture
def folder(tmp_path: Path, tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a working folder with both tokenizers."""
    tokenizers.text.save(tmp_path / "tok")
    tokenizers.image.save(tmp_path / "tok")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the line that a failing command prints, without `error: `."""
    capsys.readouterr()
    assert main(words) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith(("shards:", "image t"))]
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(".")
    return lines[0].removeprefix("error: ")


BUILD = ("build-shards", "docs", "--tokenizers", "tok", "--out", "shards")


def _one_document(path: str) -> None:
    Path("docs/a.jsonl").write_text('{"id": "a", "content": [{"type": "image", "path": "' + path + '"}]}\n')


def test_an_empty_folder_of_documents(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (BUILD, ("train-text-tokenizer", "docs", "--out", "t", "--num-codes", "16"), ("inspect", "docs")):
        line = error_line(capsys, *words)
        assert line.startswith("docs: ")
        assert ".jsonl" in line


def test_a_truncated_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("docs/cut.png").write_bytes(png(1)[:-300])
    _one_document("cut.png")
    line = error_line(capsys, *BUILD)
    assert "docs/cut.png" in line


def test_a_text_file_with_the_suffix_of_an_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("docs/words.png").write_text("not an image")
    _one_document("words.png")
    line = error_line(capsys, *BUILD)
    assert "docs/words.png" in line


def test_a_path_that_climbs_out_of_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("secret.png").write_bytes(png(1))
    _one_document("../secret.png")
    line = error_line(capsys, *BUILD)
    assert "docs/a.jsonl" in line
    assert "../secret.png" in line


def test_invalid_documents_can_be_skipped_and_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("docs/cut.png").write_bytes(png(1)[:-300])
    _one_document("cut.png")
    write_jsonl(Path("docs/b.jsonl"), [Document(id="b", content=(Text("words"),))])
    assert main([*BUILD, "--skip-invalid"]) == 0
    line = capsys.readouterr().out.splitlines()
    assert line[0].startswith("shards: 1 sequences, ")
    assert "dropped 1 (unreadable), listed in shards/quarantine.jsonl" in line


def _commands(out: str) -> list[tuple[str, ...]]:
    write_parquet(Path("docs/d.parquet"), [Document(id="d", content=(Image(data=png(1)),))])
    Path("vq.toml").write_text(VQ.replace("docs.jsonl", "docs/d.parquet"))
    Path("run.toml").write_text(PRETRAIN)
    return [
        ("demo", "--config", str(TINY), "--out", out),
        (*BUILD[:-1], out),
        ("train-text-tokenizer", "docs", "--out", out, "--num-codes=16", "--num-text=256"),
        ("train-image-tokenizer", "vq.toml", "--out", out),
        ("pretrain", "run.toml", "--out", out),
        ("generate", "model", "--prompt", "x", "--out", out),
        ("evaluate", "model", "--tasks", "likelihood", "--documents", "docs", "--out", out),
    ]


def test_a_folder_that_cannot_be_created(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("in the way")
    for words in _commands("file/out"):
        line = error_line(capsys, *words)
        assert line == (
            "file/out: cannot be written (Not a directory); expected a folder that you may write "
            "to. Choose another --out."
        )


def test_a_read_only_folder(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Root can write everywhere, so the error is simulated.
    def refuse(path: Path, *rest: object, **more: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    for words in _commands("out"):
        line = error_line(capsys, *words)
        assert line.startswith("out: cannot be written (Read-only file system); expected a folder")


def test_a_disk_that_is_full_at_the_final_rename(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *rest: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    commands = _commands("out")[1:4]
    monkeypatch.setattr(Path, "replace", full)
    for words in commands:
        line = error_line(capsys, *words)
        assert re.match(r"out/[\w./-]+: no space left on the device; expected free space", line)
        assert line.endswith("and run the same command to resume.")


@pytest.fixture
def small_disk(folder: Path) -> Path:
    """Mount a file system of 64 KiB."""
    disk = folder / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    mounted = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)],
        capture_output=True, check=False,
    )  # fmt: skip
    if not mounted or mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    return disk


def test_a_real_disk_that_is_full(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        for words, pages in zip(_commands("disk/out")[1:4], (14, 15, 10), strict=True):
            # The image tokenizer has space to start, but none for its first checkpoint.
            shutil.rmtree("disk/out", ignore_errors=True)
            (small_disk / "ballast").write_bytes(bytes(pages * 4096))
            assert re.match(r"disk/out[\w./-]*: no space left", error_line(capsys, *words))
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)


def test_the_installed_command_prints_one_line_and_no_traceback(folder: Path) -> None:
    Path("docs/words.png").write_text("not an image")
    _one_document("words.png")
    command = [sys.executable, "-m", "calumma", *BUILD]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "docs/words.png" in line
