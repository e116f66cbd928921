"""The loader: complete epochs, exact mixtures, and exact resume from any state."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calumma.batches.batch import PADDING, Batch
from calumma.batches.loader import DataConfig, LoaderState, PackedLoader
from calumma.errors import ConfigError
from calumma.shards.manifest import Manifest
from calumma.shards.reader import ShardReader
from calumma.shards.shard_builder import ShardWriter
from tests.batches.shards_of_three import SIZES, V, names, written

ALL = {"pairs": 1.0, "text": 1.0}
SMALL = DataConfig(seq_len=16, global_batch_size=2, pack_window=3, max_deferred=0)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return written(tmp_path_factory.mktemp("shards"))


def start(reader: ShardReader, config: DataConfig, weights: Mapping[str, float]) -> PackedLoader:
    loader = PackedLoader(reader, config)
    loader.set_mixture(weights)
    return loader


def same(one: Batch, other: Batch) -> bool:
    fields = ("input_ids", "labels", "loss_mask", "document_ids", "position_ids")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(8, 40), st.integers(1, 4), st.integers(1, 4))
def test_nothing_is_lost_or_repeated_in_an_epoch(
    reader: ShardReader, seed: int, seq_len: int, num_rows: int, window: int
) -> None:
    config = DataConfig(seq_len=seq_len, global_batch_size=num_rows, pack_window=window, max_deferred=0, seed=seed)
    loader = start(reader, config, {"pairs": 1.0})
    drawn: list[int] = []
    while len(drawn) < 3 * SIZES["pairs"]:
        for _ in range(window):
            drawn += names(loader.next())
    counts = Counter(drawn)
    epochs, rest = divmod(len(drawn), SIZES["pairs"])
    assert all(counts[n] in (epochs, epochs + 1) for n in range(SIZES["pairs"]))
    assert sum(counts[n] == epochs + 1 for n in range(SIZES["pairs"])) == rest


def test_no_image_is_cut(reader: ShardReader) -> None:
    loader = start(reader, SMALL, ALL)
    for _ in range(12):
        batch = loader.next()
        opened = (batch.input_ids == V.begin_image).sum(axis=1)
        assert ((batch.input_ids == 4).sum(axis=1) == opened).all()
        assert ((batch.input_ids == 5).sum(axis=1) == opened).all()


def test_position_and_document_ids_separate_sequences(reader: ShardReader) -> None:
    batch = start(reader, SMALL, ALL).next()
    inside = batch.document_ids != PADDING
    assert ((batch.input_ids == V.bos) == (inside & (batch.position_ids == 0))).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 14), st.booleans())
def test_any_state_resumes_with_the_same_batches(reader: ShardReader, step: int, fresh: bool) -> None:
    config = DataConfig(seq_len=16, global_batch_size=2, pack_window=3, cond_dropout_prob=0.3)
    uninterrupted = start(reader, config, ALL)
    for _ in range(step):
        uninterrupted.next()
    state = LoaderState(**json.loads(json.dumps(asdict(uninterrupted.state))))
    resumed = PackedLoader(reader, config) if fresh else uninterrupted
    expected = [uninterrupted.next() for _ in range(8)]
    resumed.restore(state)
    resumed.set_mixture(ALL)
    assert all(same(batch, resumed.next()) for batch in expected)


@pytest.mark.parametrize("boundary", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("step", [0, 1, 3, 4, 5, 6, 7, 9])
def test_a_change_of_stage_is_the_same_for_a_resumed_run(reader: ShardReader, boundary: int, step: int) -> None:
    def weights(at: int) -> dict[str, float]:
        return {"pairs": 3.0, "text": 1.0} if at < boundary else {"answers": 1.0, "text": 1.0}

    uninterrupted = PackedLoader(reader, SMALL)
    batches, states = [], []
    for at in range(14):
        states.append(LoaderState(**json.loads(json.dumps(asdict(uninterrupted.state)))))
        uninterrupted.set_mixture(weights(at))
        batches.append(uninterrupted.next())
    resumed = PackedLoader(reader, SMALL)
    resumed.restore(states[step])
    for at in range(step, 14):
        resumed.set_mixture(weights(at))
        assert same(resumed.next(), batches[at])


def test_a_change_of_stage_keeps_the_position_in_each_source(reader: ShardReader) -> None:
    loader = start(reader, SMALL, {"pairs": 1.0})
    first = [name for _ in range(3) for name in names(loader.next())]
    loader.set_mixture(ALL)
    second = [name for _ in range(3) for name in names(loader.next()) if name < 100]
    assert not set(first) & set(second)


def test_the_order_of_sources_in_a_config_does_not_matter(reader: ShardReader) -> None:
    one = start(reader, SMALL, {"pairs": 0.1, "text": 0.3, "answers": 0.6})
    other = start(reader, SMALL, {"answers": 0.6, "text": 0.3, "pairs": 0.1})
    assert all(same(one.next(), other.next()) for _ in range(7))


@settings(max_examples=20, deadline=None)
@given(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9)))
def test_every_window_has_the_mixture_to_within_a_sequence_or_two(
    reader: ShardReader, parts: tuple[int, int, int]
) -> None:
    weights = dict(zip(SIZES, map(float, parts), strict=True))
    loader = start(reader, SMALL, weights)
    for _ in range(3):
        before = dict(loader.state.sequences_drawn)
        for _ in range(SMALL.pack_window + 1):
            loader.next()
        drawn = {n: loader.state.sequences_drawn.get(n, 0) - before.get(n, 0) for n in SIZES}
        loader.restore(LoaderState(loader.state.sequences_drawn, 0, loader.state.weights))
        total = sum(drawn.values())
        for name, weight in weights.items():
            assert abs(drawn[name] - total * weight / sum(weights.values())) < 2


def test_about_half_of_the_pairs_come_image_first(reader: ShardReader) -> None:
    loader = start(reader, SMALL, {"pairs": 1.0})
    orders: list[bool] = []
    while len(orders) < 400:
        batch = loader.next()
        orders += (batch.input_ids[batch.position_ids == 1] == V.begin_image).tolist()
    assert 0.4 < np.mean(orders) < 0.6


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_probability_of_image_first_is_respected(reader: ShardReader, probability: float) -> None:
    config = DataConfig(seq_len=16, global_batch_size=2, pack_window=3, image_first_prob=probability)
    batch = start(reader, config, {"pairs": 1.0}).next()
    assert (batch.input_ids[batch.position_ids == 1] == V.begin_image).mean() == probability


def test_index_and_epoch_decide_the_order_of_a_pair(reader: ShardReader) -> None:
    def orders(weights: Mapping[str, float], rows: int) -> dict[int, list[bool]]:
        loader = start(reader, DataConfig(seq_len=6, global_batch_size=rows, pack_window=2), weights)
        seen: dict[int, list[bool]] = {}
        while min([len(seen.get(n, [])) for n in range(SIZES["pairs"])]) < 4:
            for row in loader.next().input_ids:
                name = int(row.max()) - V.text.start
                if 0 <= name < 100:
                    seen.setdefault(name, []).append(int(row[1]) == V.begin_image)
        return {name: values[:4] for name, values in seen.items()}

    alone = orders({"pairs": 1.0}, 3)
    assert len({tuple(values) for values in alone.values()}) > 8
    first_epoch = {n: values[0] for n, values in alone.items()}
    shares = {"pairs": 1.0, "text": 0.0}
    assert {n: values[0] for n, values in orders(shares, 5).items()} == first_epoch


def test_conditions_are_dropped_and_the_rest_is_in_the_loss(reader: ShardReader) -> None:
    config = DataConfig(seq_len=16, global_batch_size=4, pack_window=3, image_first_prob=0.0, cond_dropout_prob=1.0)
    batch = start(reader, config, {"pairs": 1.0, "answers": 1.0}).next()
    assert names(batch) == []
    assert (batch.input_ids[batch.position_ids == 1] == V.begin_image).all()
    assert (batch.loss_mask == (batch.document_ids != PADDING)).all()


def test_an_unknown_source_is_refused(reader: ShardReader) -> None:
    with pytest.raises(ConfigError) as caught:
        PackedLoader(reader, SMALL).set_mixture({"pairs": 1.0, "pears": 1.0})
    assert str(caught.value) == (
        f'the mixture names source "pears", but {reader.folder} holds "pairs", "text", "answers". '
        "Fix the name, or build shards that hold it."
    )


@pytest.mark.parametrize("weights", [{}, {"pairs": 0.0}, {"pairs": 2.0, "text": -1.0}])
def test_invalid_mixture_weights_are_refused(reader: ShardReader, weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as caught:
        PackedLoader(reader, SMALL).set_mixture(weights)
    assert str(caught.value) == (f"the mixture's weights are {weights}; expected none negative and one positive.")


def test_a_sequence_longer_than_a_window_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(V)
    writer.add([V.bos, *([V.text.start] * 30), V.eos], [True] * 32, "long")
    shards = [writer.write(tmp_path, "shard-00000")]
    Manifest(vocabulary=V, fingerprint="f", fingerprints={}, shards=shards).save(tmp_path)
    config = DataConfig(seq_len=8, global_batch_size=1, pack_window=2)
    loader = start(ShardReader(tmp_path), config, {"long": 1.0})
    with pytest.raises(ConfigError) as caught:
        loader.next()
    assert str(caught.value) == (
        "a sequence of source 'long' is longer than 2 rows of 8 tokens; expected a larger "
        "data.seq_len or data.pack_window."
    )


def test_rows_too_short_for_an_image_are_refused(reader: ShardReader) -> None:
    with pytest.raises(ConfigError) as caught:
        PackedLoader(reader, DataConfig(seq_len=3))
    assert str(caught.value) == (
        f"data.seq_len=3 does not hold the images in {reader.folder}, which take up to 4 tokens each; "
        "expected at least that. Raise data.seq_len."
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 8), st.sampled_from(["sequences", "tokens"]))
def test_deferred_sequences_are_neither_lost_nor_repeated(
    reader: ShardReader, seed: int, max_deferred: int, unit: Any
) -> None:
    config = DataConfig(
        seq_len=9, global_batch_size=3, pack_window=2, max_deferred=max_deferred, mixture_unit=unit, seed=seed
    )
    loader = start(reader, config, ALL)
    seen: Counter[int] = Counter()
    for _ in range(60):
        seen.update(names(loader.next()))
    end = loader.end_state()
    for name, first in (("pairs", 0), ("text", 100)):
        epochs = end.sequences_drawn[name] // SIZES[name]
        waiting = [n for n, _ in end.deferred if (n >= SIZES["pairs"]) == (name == "text")]
        counts = [seen[first + n] for n in range(SIZES[name])]
        assert sum(counts) == end.sequences_drawn[name] - len(waiting)
        assert all(epochs - len(waiting) <= count <= epochs + 1 for count in counts)
    assert len(end.deferred) <= max_deferred


def test_deferring_fills_rows(reader: ShardReader) -> None:
    fills = []
    for max_deferred in (0, 8):
        config = DataConfig(seq_len=30, global_batch_size=4, pack_window=4, max_deferred=max_deferred)
        loader = start(reader, config, ALL)
        fills.append(np.mean([loader.next().non_padding_fraction for _ in range(40)]))
    assert fills[1] > 0.985 > fills[0]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_any_number_of_ranks_reads_the_same_rows_between_them(reader: ShardReader, size: int) -> None:
    config = DataConfig(seq_len=16, global_batch_size=5, pack_window=3, cond_dropout_prob=0.2)
    uninterrupted = start(reader, config, ALL)
    ranks = [PackedLoader(reader, config, rank=rank, world_size=size) for rank in range(size)]
    for step in range(8):
        weights = ALL if step < 5 else {"answers": 2.0, "text": 1.0}
        uninterrupted.set_mixture(weights)
        batch = uninterrupted.next()
        for rank, loader in enumerate(ranks):
            loader.set_mixture(weights)
            assert same(loader.next(), batch.rows(slice(rank, None, size)))
            assert loader.state == uninterrupted.state


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 12),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(0, 3),
    st.sampled_from(["sequences", "tokens"]),
)
def test_a_run_stopped_anywhere_resumes_on_any_number_of_ranks(
    reader: ShardReader, step: int, sizes: tuple[int, int], max_deferred: int, unit: Any
) -> None:
    config = DataConfig(
        seq_len=12, global_batch_size=4, pack_window=2, max_deferred=max_deferred, mixture_unit=unit, seed=step
    )
    before, after = sizes
    stopped = [PackedLoader(reader, config, rank=rank, world_size=before) for rank in range(before)]
    for loader in stopped:
        loader.set_mixture(ALL)
        for _ in range(step):
            loader.next()
    uninterrupted = start(reader, config, ALL)
    for _ in range(step):
        uninterrupted.next()
    saved = LoaderState(**json.loads(json.dumps(asdict(stopped[-1].state))))
    resumed = [PackedLoader(reader, config, rank=rank, world_size=after) for rank in range(after)]
    for loader in resumed:
        loader.restore(saved)
        loader.set_mixture(ALL)
    for _ in range(6):
        batch = uninterrupted.next()
        for rank, loader in enumerate(resumed):
            assert same(loader.next(), batch.rows(slice(rank, None, after)))


def test_the_state_is_a_few_hundred_bytes(reader: ShardReader) -> None:
    loader = start(reader, DataConfig(seq_len=9, global_batch_size=4, pack_window=4), ALL)
    for _ in range(50):
        loader.next()
    assert len(json.dumps(asdict(loader.state))) < 400


def test_weights_in_tokens_hold_for_sources_of_any_length(tmp_path: Path) -> None:
    writer = ShardWriter(V)
    for source, length in (("long", 90), ("short", 7)):
        for number in range(50):
            ids = [V.bos, *([V.text.start + (source == "long")] * (length + number % 5)), V.eos]
            writer.add(ids, [True] * len(ids), source)
    shards = [writer.write(tmp_path, "shard-00000")]
    Manifest(vocabulary=V, fingerprint="f", fingerprints={}, shards=shards).save(tmp_path)
    config = DataConfig(seq_len=128, global_batch_size=16, mixture_unit="tokens")
    loader = start(ShardReader(tmp_path), config, {"long": 0.3, "short": 0.7})
    counts = np.zeros(2)
    for _ in range(2000 // 16):
        ids = loader.next().input_ids
        counts += [(ids == V.text.start + 1).sum(), (ids == V.text.start).sum()]
    # Each sequence has one more token, <s>: 1 in 94 and 1 in 10.
    shares = counts * [94 / 93, 10 / 9]
    assert abs(shares[0] / shares.sum() - 0.3) < 0.01


def test_fewer_rows_than_ranks_are_refused(reader: ShardReader) -> None:
    with pytest.raises(ConfigError) as caught:
        PackedLoader(reader, SMALL, rank=0, world_size=3)
    assert str(caught.value) == (
        "data.global_batch_size=2 for 3 data-parallel ranks; expected at least one row for each. "
        "Raise data.global_batch_size."
    )


@pytest.mark.parametrize("batches", [0, 1, 3, 4, 9])
def test_skipping_batches_equals_reading_them(reader: ShardReader, batches: int) -> None:
    uninterrupted, skipping = start(reader, SMALL, ALL), start(reader, SMALL, ALL)
    for loader in (uninterrupted, skipping):
        loader.next()
    for _ in range(batches):
        uninterrupted.next()
    skipping.skip(batches)
    assert skipping.state == uninterrupted.state
    assert all(same(uninterrupted.next(), skipping.next()) for _ in range(5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_workers": -1}, "data.num_workers=-1 and data.max_deferred=16; expected at least 0 of each."),
        (
            {"image_first_prob": 2.0},
            "data.image_first_prob=2.0 and data.cond_dropout_prob=0.0; expected probabilities, from 0 to 1.",
        ),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DataConfig(**fields)
    assert str(caught.value) == message
