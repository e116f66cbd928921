"""Reading shards: random access, and every corruption is detected."""

import gc
import resource
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import calumma.shards.reader
from calumma.errors import ShardError
from calumma.shards.manifest import Manifest
from calumma.shards.reader import ShardReader
from calumma.shards.shard_builder import ShardWriter
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=3, num_text=256)
SHARDS = [[([0, 20, 2], "a"), ([0, 2], "b")], [], [([0, 30, 31, 2], "b")]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write three shards, the second empty."""
    shards = []
    for number, sequences in enumerate(SHARDS):
        writer = ShardWriter(V)
        for token_ids, source in sequences:
            writer.add(token_ids, [False] + [True] * (len(token_ids) - 1), source)
        shards.append(writer.write(tmp_path, f"shard-{number:05d}-000"))
    Manifest(vocabulary=V, fingerprint="f", fingerprints={}, shards=shards).save(tmp_path)
    return tmp_path


def test_every_sequence_comes_back(folder: Path) -> None:
    reader = ShardReader(folder)
    assert len(reader) == 3
    for number, (expected, _) in enumerate(SHARDS[0] + SHARDS[2]):
        token_ids, loss_mask = reader.read(number)
        assert (token_ids.dtype, loss_mask.dtype) == (np.int64, np.bool_)
        assert token_ids.tolist() == expected
        assert loss_mask.tolist() == [False] + [True] * (len(expected) - 1)
        assert reader.length(number) == len(expected)


def test_sources_name_their_sequences(folder: Path) -> None:
    reader = ShardReader(folder)
    assert reader.sequence_indices("a").tolist() == [0]
    assert reader.sequence_indices("b").tolist() == [1, 2]
    assert [reader.source_of(number) for number in range(3)] == ["a", "b", "b"]
    assert [reader.sequence_index("b", index) for index in range(2)] == [1, 2]
    assert [reader.num_sequences(name) for name in "ab"] == [1, 2]


def test_shards_of_nothing_are_empty(tmp_path: Path) -> None:
    Manifest(vocabulary=V, fingerprint="f", fingerprints={}, shards=[]).save(tmp_path)
    assert len(ShardReader(tmp_path)) == 0


def test_an_unknown_source_is_refused(folder: Path) -> None:
    with pytest.raises(ShardError) as caught:
        ShardReader(folder).sequence_indices("c")
    assert str(caught.value) == (f'{folder} has no source "c"; expected one of "a", "b". Fix the mixture\'s names.')


@pytest.mark.parametrize(("suffix", "expected"), [("tokens", 10), ("offsets", 16), ("loss_mask", 5)])
def test_a_truncated_shard_is_refused(folder: Path, suffix: str, expected: int) -> None:
    path = folder / f"shard-00000-000.{suffix}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShardError) as caught:
        ShardReader(folder)
    assert str(caught.value) == (
        f"{path} has {expected - 1} bytes; expected {expected} bytes. Repeat the command that "
        "built the shards: intact ones are kept."
    )


def test_a_missing_shard_is_refused(folder: Path) -> None:
    path = folder / "shard-00002-000.sources"
    path.unlink()
    with pytest.raises(ShardError) as caught:
        ShardReader(folder)
    assert str(caught.value) == (
        f"{path} is missing; expected 2 bytes. Repeat the command that built the shards: intact ones are kept."
    )


@pytest.mark.parametrize("suffix", ["tokens", "loss_mask"])
@pytest.mark.parametrize("index", [0, 3, 4])
def test_a_flipped_byte_is_never_read(folder: Path, suffix: str, index: int) -> None:
    path = folder / f"shard-00000-000.{suffix}"
    content = bytearray(path.read_bytes())
    width = 2 if suffix == "tokens" else 1
    content[index * width] ^= 16
    path.write_bytes(content)
    reader = ShardReader(folder)
    broken = 0 if index < 3 else 1
    assert len(reader.read(1 - broken)[0]) == (3 if broken else 2)
    with pytest.raises(ShardError) as caught:
        reader.read(broken)
    assert str(caught.value) == (
        f"{folder / 'shard-00000-000.tokens'}: sequence {broken} has changed since it was written; "
        "expected the original bytes. Repeat the command that built the shards: intact ones are "
        "kept."
    )
    with pytest.raises(ShardError, match="the file has changed since it was written"):
        reader.verify()


@pytest.mark.parametrize("suffix", ["offsets", "sources", "crc32"])
def test_a_flipped_byte_of_the_index_is_seen_when_the_shard_is_opened(folder: Path, suffix: str) -> None:
    path = folder / f"shard-00002-000.{suffix}"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    reader = ShardReader(folder)
    assert reader.read(0)[0].tolist() == [0, 20, 2]
    with pytest.raises(ShardError) as caught:
        reader.length(2)
    assert str(caught.value) == (
        f"{path}: the file has changed since it was written; expected the original bytes. Repeat "
        "the command that built the shards: intact ones are kept."
    )


def test_a_missing_shard_is_refused_at_once(folder: Path) -> None:
    (folder / "shard-00002-000.loss_mask").unlink()
    with pytest.raises(ShardError) as caught:
        ShardReader(folder)
    assert str(caught.value) == (
        f"{folder / 'shard-00002-000.loss_mask'} is missing; expected 4 bytes. Repeat the command "
        "that built the shards: intact ones are kept."
    )


def _open_files(folder: Path) -> int:
    """Return the number of files of a folder that this process has open; 0 if unknown."""
    held = Path("/proc/self/fd")
    links = [link.readlink() for link in held.iterdir() if link.is_symlink()] if held.is_dir() else []
    return sum(link.is_relative_to(folder) for link in links)


@pytest.mark.parametrize("limit", [24, 10])
def test_with_few_files_allowed_shards_are_closed_and_opened_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, limit))
    reader = ShardReader(folder)
    before = _open_files(folder)
    for _ in range(2):
        assert [reader.read(n)[0].tolist() for n in (0, 2)] == [[0, 20, 2], [0, 30, 31, 2]]
    assert len(reader._open) == max(1, limit // 10)
    del reader
    assert _open_files(folder) == before


def test_threads_share_a_reader_that_may_open_one_shard_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (10, 10))
    reader = ShardReader(folder)
    numbers = [0, 2, 1, 2] * 100
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: reader.read(number)[0].tolist(), numbers))
    expected = {0: [0, 20, 2], 1: [0, 2], 2: [0, 30, 31, 2]}
    assert found == [expected[number] for number in numbers]


def test_a_shard_that_is_deleted_while_it_is_read_is_reported(folder: Path) -> None:
    reader = ShardReader(folder)
    (folder / "shard-00002-000.tokens").unlink()
    with pytest.raises(ShardError) as caught:
        reader.length(2)
    assert str(caught.value) == (
        f"{folder / 'shard-00002-000.tokens'} can no longer be opened (No such file or "
        "directory); expected the shards not to change while they are read. Start again when they "
        "are complete."
    )


def test_memory_barely_grows_with_the_number_of_shards(tmp_path: Path) -> None:
    """Compare Python's memory after reading 20 and 2,000 shards of two sources."""

    def held(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        shards = []
        for number in range(count):
            writer = ShardWriter(V)
            writer.add([0, 20, 2], [True] * 3, "a")
            writer.add([0, 2], [True] * 2, "b")
            shards.append(writer.write(folder, f"shard-{number:05d}-000"))
        Manifest(vocabulary=V, fingerprint="f", fingerprints={}, shards=shards).save(folder)
        del shards
        tracemalloc.start()
        reader = ShardReader(folder)
        for index in range(reader.num_sequences("b")):
            assert len(reader.read(reader.sequence_index("b", index))[0]) == 2
        gc.collect()
        sizes = [trace.size for trace in tracemalloc.take_snapshot().traces]
        tracemalloc.stop()
        # One block of megabytes is the interpreter's table of interned strings, if it grows just then.
        return sum(size for size in sizes if size < 2**20)

    held(2)  # imports and caches of the first call
    grown = held(2000) - held(20)
    # The shards that are open, and 33 bytes for each of the others.
    assert grown < 2048 * calumma.shards.reader.MAX_OPEN_SHARDS + 50 * 2000


def test_a_script_that_ends_with_an_open_reader_is_silent(shards: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from calumma.shards.reader import ShardReader; "
        f"sys.reader = ShardReader(Path({str(shards)!r})); sys.reader.read(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
