"""Atomic writes, JSON files, and errors of full or read-only disks."""

import errno
import hashlib
from pathlib import Path

import pytest

from calumma.errors import FileError, OutputError
from calumma.files import (
    JsonLines,
    atomic_write,
    fingerprint,
    make_folder,
    os_errors_as_output_errors,
    read_json,
    sha256,
    write_json,
    write_json_lines,
    write_text,
)


def test_json_is_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"name": "Käfer", "counts": [1, 2]})
    assert read_json(path) == {"name": "Käfer", "counts": [1, 2]}
    assert path.read_bytes().endswith(b"\n")


def test_json_lines_are_read_lazily(tmp_path: Path) -> None:
    values = [{"a": "Käfer"}, [1, 2], "x"]
    for lines in (write_json_lines(tmp_path / "a", iter(values)), JsonLines(tmp_path / "a")):
        assert (len(lines), list(lines), lines[0:2], lines[-1]) == (3, values, values[:2], "x")
    with pytest.raises(IndexError):
        JsonLines(tmp_path / "a")[3]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"


def test_the_temporary_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a.txt.tmp").mkdir()
    (tmp_path / "a.txt.tmp" / "half").touch()
    write_text(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_as_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for name in ("one", "two"):
        with atomic_write(path) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [file.name for file in path.iterdir()] == ["two"]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputError) as caught:
        make_folder(tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path / 'out'}: cannot be written (File exists); expected a folder that you may "
        "write to. Choose another --out."
    )


def test_a_read_only_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, os_errors_as_output_errors(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")
    assert str(caught.value) == (
        f"{tmp_path}: cannot be written (Read-only file system); expected a folder that you may "
        "write to. Choose another --out."
    )


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, os_errors_as_output_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == (
        f"{tmp_path}: no space left on the device; expected free space for it. Free some space, or "
        "give --out a folder on another disk, and run the same command to resume."
    )


def test_another_mistake_of_the_system_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), os_errors_as_output_errors(tmp_path):
        raise OSError(errno.EIO, "Input/output error")


def test_truncated_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1', encoding="utf-8")
    with pytest.raises(FileError) as caught:
        read_json(path)
    assert str(caught.value) == (
        f"{path}: not valid JSON (Expecting ',' delimiter: line 1 column 8 (char 7)); expected the "
        "file as calumma or transformers wrote it. Copy it again, or delete it and rebuild it."
    )


def test_a_folder_that_cannot_be_created_is_refused() -> None:
    with pytest.raises(OutputError) as caught:
        make_folder(Path("/proc/calumma"))
    assert str(caught.value) == (
        "/proc/calumma: cannot be written (Permission denied); expected a folder that you may "
        "write to. Choose another --out."
    )


def test_a_fingerprint_is_the_first_twelve_digits_whatever_the_pieces() -> None:
    complete = hashlib.sha256("köder".encode()).hexdigest()[:12]
    assert fingerprint("köder") == fingerprint([b"k", "öder".encode()]) == complete
