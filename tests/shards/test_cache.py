"""The build cache: records survive a round trip, and only intact shards are reused."""

from pathlib import Path

import pytest

from calumma.documents.document import Document, Image, Text, Turn
from calumma.documents.error_policy import DroppedDocument
from calumma.shards.cache import BuildCache, CachedShard, TaskRecord, shard_key
from calumma.shards.shard_builder import ShardWriter
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=3, num_text=256)


def cached(folder: Path, name: str) -> CachedShard:
    writer = ShardWriter(V)
    writer.add([0, 20, 2], [True] * 3, "a")
    return CachedShard(f"key of {name}", writer.write(folder, name))


@pytest.fixture
def record(tmp_path: Path) -> TaskRecord:
    shards = {name: cached(tmp_path, name) for name in ("p", "q")}
    return TaskRecord(inputs=["a", 1, None], shards=shards, num_documents=7, is_self_contained=True)


def test_a_record_is_read_back(record: TaskRecord, tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)
    assert cache.lookup(3) is None
    cache.store(3, record)
    assert cache.read(3) == cache.lookup(3) == record


@pytest.mark.parametrize("suffix", [".tokens", ".loss_mask", ".offsets", ".sources", ".crc32"])
def test_a_shard_with_a_changed_or_missing_file_is_not_reused(suffix: str, record: TaskRecord, tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)
    cache.store(0, record)
    path = tmp_path / f"q{suffix}"
    content = path.read_bytes()
    for change in (bytes([content[0] ^ 1]) + content[1:], content[:-1], None):
        path.unlink() if change is None else path.write_bytes(change)
        found = cache.lookup(0)
        assert found is not None and (list(found.shards), found.num_documents) == (["p"], None)
    path.write_bytes(content)
    assert cache.lookup(0) == record


def test_the_shards_of_all_tasks_come_in_order(record: TaskRecord, tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)
    cache.store(0, record)
    cache.store(1, TaskRecord(inputs=[], shards={"r": cached(tmp_path, "r")}, num_documents=1))
    assert [shard.name for shard in cache.shards(2)] == ["p", "q", "r"]


def test_the_key_covers_everything_that_decides_the_bytes() -> None:
    image = Image(data=b"")
    turns = (Turn("user", (Text("a"), Text("b"))), Turn("assistant", (Text("c"),)))
    moved = (Turn("user", (Text("a"),)), Turn("assistant", (Text("b"), Text("c"))))
    plain = Document(id="1", source="s", content=(Text("a"), image))
    drop = DroppedDocument(id="x", source="s", reason="why", detail="")
    keys = [
        shard_key(["f", "raise"], [plain], [[b"1"]], []),
        shard_key(["g", "raise"], [plain], [[b"1"]], []),
        shard_key(["f", "drop"], [plain], [[b"1"]], []),
        shard_key(["f", "raise"], [plain], [[b"2"]], []),
        shard_key(["f", "raise"], [plain], [[None]], []),
        shard_key(["f", "raise"], [plain], [[b"1"]], [drop]),
        shard_key(["f", "raise"], [plain] * 2, [[b"1"]] * 2, []),
        shard_key(["f", "raise"], [Document(id="1", messages=turns)], [[]], []),
        shard_key(["f", "raise"], [Document(id="1", messages=moved)], [[]], []),
    ]
    assert len(set(keys)) == len(keys)
