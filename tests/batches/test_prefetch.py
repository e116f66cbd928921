"""Batches made by other processes: the same ones, in the same order, from any state."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from calumma.batches.batch import Batch
from calumma.batches.loader import DataConfig, LoaderState, PackedLoader
from calumma.batches.prefetch import PrefetchLoader
from calumma.errors import ShardError
from calumma.shards.reader import ShardReader
from tests.batches.shards_of_three import written

CONFIG = DataConfig(seq_len=16, global_batch_size=3, pack_window=2, cond_dropout_prob=0.2)
ONE, TWO = {"pairs": 3.0, "text": 1.0}, {"answers": 1.0, "text": 1.0}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return written(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module", params=[0, 1, 4])
def ahead(request: pytest.FixtureRequest, reader: ShardReader) -> Iterator[PrefetchLoader]:
    stream = PrefetchLoader(reader, CONFIG, rank=1, world_size=2, num_workers=request.param)
    yield stream
    stream.close()


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in asdict(other))


def test_workers_make_the_batches_of_a_stream_without(
    ahead: PrefetchLoader, reader: ShardReader
) -> None:
    plain = PackedLoader(reader, CONFIG, rank=1, world_size=2)
    states, batches = [], []
    for step in range(14):
        states.append(LoaderState(**json.loads(json.dumps(asdict(plain.state)))))
        plain.set_mixture(ONE if step < 5 else TWO)
        batches.append(plain.next())
    for begin in (0, 3, 5, 6, 11, 2):
        ahead.restore(states[begin])
        for step in range(begin, 14):
            assert ahead.state == states[step]
            ahead.set_mixture(ONE if step < 5 else TWO)
            assert same(ahead.next(), batches[step])


def test_what_was_made_ahead_of_batches_that_are_passed_over_is_thrown_away(
    ahead: PrefetchLoader, reader: ShardReader
) -> None:
    plain = PackedLoader(reader, CONFIG, rank=1, world_size=2)
    ahead.restore(LoaderState())
    for stream in (plain, ahead):
        stream.set_mixture(ONE)
        stream.next()
        stream.skip(4)
    assert all(same(ahead.next(), plain.next()) for _ in range(5))


def test_a_broken_sequence_is_told_by_whoever_reads_it(tmp_path: Path) -> None:
    reader = written(tmp_path)
    path = tmp_path / "shard-00000.ids"
    path.write_bytes(bytes(len(path.read_bytes())))
    stream = PrefetchLoader(reader, CONFIG, num_workers=1)
    stream.set_mixture(ONE)
    with pytest.raises(ShardError, match="is not what was written; expected its bytes unchanged"):
        stream.next()
    stream.close()


def test_a_worker_that_is_killed_is_told(reader: ShardReader) -> None:
    stream = PrefetchLoader(reader, CONFIG, num_workers=1)
    stream.set_mixture(ONE)
    stream.next()
    assert stream._pool is not None
    os.kill(stream._pool.submit(os.getpid).result(), signal.SIGKILL)
    with pytest.raises(ShardError) as caught:
        for _ in range(8):
            stream.next()
    assert str(caught.value) == (
        f"{reader.folder}: a process that reads batches was killed, perhaps for want of memory; "
        "expected it to live. Start again with fewer loader workers."
    )
    stream.close()
