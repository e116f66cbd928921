"""Prefetching: the same batches in the same order, from any state, for any number of workers."""

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
def prefetching(request: pytest.FixtureRequest, reader: ShardReader) -> Iterator[PrefetchLoader]:
    loader = PrefetchLoader(reader, CONFIG, rank=1, world_size=2, num_workers=request.param)
    yield loader
    loader.close()


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in asdict(other))


def test_workers_prepare_the_batches_of_a_loader_without_workers(
    prefetching: PrefetchLoader, reader: ShardReader
) -> None:
    plain = PackedLoader(reader, CONFIG, rank=1, world_size=2)
    states, batches = [], []
    for step in range(14):
        states.append(LoaderState(**json.loads(json.dumps(asdict(plain.state)))))
        plain.set_mixture(ONE if step < 5 else TWO)
        batches.append(plain.next())
    for begin in (0, 3, 5, 6, 11, 2):
        prefetching.restore(states[begin])
        for step in range(begin, 14):
            assert prefetching.state == states[step]
            prefetching.set_mixture(ONE if step < 5 else TWO)
            assert same(prefetching.next(), batches[step])


def test_prepared_batches_that_are_skipped_are_discarded(prefetching: PrefetchLoader, reader: ShardReader) -> None:
    plain = PackedLoader(reader, CONFIG, rank=1, world_size=2)
    prefetching.restore(LoaderState())
    for loader in (plain, prefetching):
        loader.set_mixture(ONE)
        loader.next()
        loader.skip(4)
    assert all(same(prefetching.next(), plain.next()) for _ in range(5))


def test_a_corrupt_sequence_is_reported_from_a_worker(tmp_path: Path) -> None:
    reader = written(tmp_path)
    path = tmp_path / "shard-00000.tokens"
    path.write_bytes(bytes(len(path.read_bytes())))
    loader = PrefetchLoader(reader, CONFIG, num_workers=1)
    loader.set_mixture(ONE)
    with pytest.raises(ShardError, match="has changed since it was written; expected the original bytes"):
        loader.next()
    loader.close()


def test_a_killed_worker_is_reported(reader: ShardReader) -> None:
    loader = PrefetchLoader(reader, CONFIG, num_workers=1)
    loader.set_mixture(ONE)
    loader.next()
    assert loader._pool is not None
    os.kill(loader._pool.submit(os.getpid).result(), signal.SIGKILL)
    with pytest.raises(ShardError) as caught:
        for _ in range(8):
            loader.next()
    assert str(caught.value) == (
        f"{reader.folder}: a data-loader worker was killed, perhaps by lack of memory; expected it "
        "to run until the end. Start again with a smaller data.num_workers."
    )
    loader.close()
