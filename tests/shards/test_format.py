"""The files of a shard: dtypes, sizes and names."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from calumma.shards.format import DTYPES, checksum, shard_file_sizes, shard_name, token_dtype
from calumma.shards.shard_builder import ShardWriter
from calumma.vocabulary import Vocabulary


@pytest.mark.parametrize(("size", "dtype"), [(316, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (152_064, "<u4")])
def test_ids_are_as_narrow_as_the_vocabulary_allows(size: int, dtype: str) -> None:
    assert token_dtype(size) == dtype
    assert np.array([size - 1]).astype(dtype).tolist() == [size - 1]


def test_shards_sort_by_task_and_part() -> None:
    names = [shard_name(task, part) for task, part in ((0, 2), (0, 10), (9, 0), (12345, 0))]
    assert names == ["shard-00000-002", "shard-00000-010", "shard-00009-000", "shard-12345-000"]
    assert names == sorted(names)


def test_the_sizes_of_the_files_of_a_shard() -> None:
    sizes = {".tokens": 28, ".loss_mask": 7, ".offsets": 24, ".sources": 6, ".crc32": 12}
    assert shard_file_sizes(3, 7, "<u4") == sizes


def test_arrays_can_be_memory_mapped(tmp_path: Path) -> None:
    writer = ShardWriter(Vocabulary(num_codes=3, num_text=256))
    for token_ids in ([0, 20, 2], [0, 2]):
        writer.add(token_ids, [True] * len(token_ids), "a")
    writer.write(tmp_path, "p")
    found = {s: np.memmap(tmp_path / f"p{s}", d, mode="r").tolist() for s, d in DTYPES.items()}
    token_ids = [np.array([0, 20, 2], "<u2"), np.array([0, 2], "<u2")]
    checks = [checksum(row.tobytes(), bytes([1] * len(row))) for row in token_ids]
    assert np.memmap(tmp_path / "p.tokens", "<u2", mode="r").tolist() == [0, 20, 2, 0, 2]
    assert found == {".offsets": [3, 5], ".sources": [0, 0], ".loss_mask": [1] * 5, ".crc32": checks}
    assert checks[1] == zlib.crc32(b"\1\1", zlib.crc32(b"\0\0\2\0"))
