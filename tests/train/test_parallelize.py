"""Ranks learn what one process learns, however they share it, and go on with each other's work."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.checkpoints.training_checkpoint import RetentionPolicy
from calumma.errors import ConfigError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.model.presets import preset
from calumma.train.config import ParallelConfig
from calumma.train.distributed import SINGLE_PROCESS, DistContext
from calumma.train.hf_export import ExportConfig, HFExporter
from calumma.train.parallelize import Ranks, build_sharded_decoder
from tests.checkpoints.random_models import folder_bytes
from tests.launch import free_ports, run_ranks
from tests.train import decoder_ranks
from tests.train.runs import assert_same_course, told

CPU = torch.device("cpu")


def with_ranks(size: int, tasks: decoder_ranks.Tasks) -> None:
    """Start so many ranks and wait for them."""
    tasks.folder.mkdir()
    ports = free_ports(3)
    run_ranks(size, decoder_ranks.do, tasks, ports, port=ports[0], logs=tasks.folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """What one process learns, and what ranks learn: two by two, and two.

    The four also begin a run and die after its third step; one, two and three go on with it.
    """
    made = tmp_path_factory.mktemp("ranks")
    (made / "one").mkdir()
    for name in decoder_ranks.SHAPES:
        decoder_ranks.train(name, ParallelConfig(), SINGLE_PROCESS, made / "one")

    def tasks(name: str, **what: Any) -> decoder_ranks.Tasks:
        return decoder_ranks.Tasks(folder=made / name, shards=shards, **what)

    with_ranks(4, tasks("both", steps=ParallelConfig(tensor_parallel=2), begin=made / "begun"))
    for size in (1, 2, 3):
        shutil.copytree(made / "begun", made / f"run-{size}")
    decoder_ranks.take_up(made / "run-1", shards)
    trouble = made / "trouble-2"
    two = tasks("sharded", steps=ParallelConfig(), take_up=made / "run-2", trouble=trouble)
    with_ranks(2, two)
    with_ranks(3, tasks("three", take_up=made / "run-3"))
    return made


@pytest.mark.parametrize("name", decoder_ranks.SHAPES)
@pytest.mark.parametrize("ranks", ["sharded", "both"])
def test_ranks_learn_what_one_process_learns(folder: Path, ranks: str, name: str) -> None:
    one, many = (json.loads((folder / f / f"{name}.json").read_text()) for f in ("one", ranks))
    assert len(one) == decoder_ranks.STEPS[name]
    for alone, shared in zip(one, many, strict=True):
        assert shared == pytest.approx(alone, abs=1e-5)
    weights, cut = (torch.load(folder / f / f"{name}.pt") for f in ("one", ranks))
    assert weights.keys() == cut.keys()
    for key, tensor in weights.items():
        assert torch.allclose(tensor, cut[key], atol=1e-5), key


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_run_of_four_ranks_goes_on_with_another_number(
    folder: Path, undisturbed: Path, size: int
) -> None:
    assert len(told(folder / "begun")) == 3
    run = folder / f"run-{size}"
    assert_same_course(run, undisturbed)
    weights, expected = (torch.load(r / "weights.pt") for r in (run, undisturbed))
    for key, tensor in expected.items():
        assert torch.allclose(tensor, weights[key], atol=1e-5), key


def test_a_model_folder_of_what_ranks_saved_is_what_one_process_saves(
    folder: Path, shards: Path, model_parts: ModelComponents, tmp_path: Path
) -> None:
    """A tensor at a time, out of the ranks' files."""
    run = folder / "run-2"
    size = model_parts.tokenizers.text.vocabulary.size
    model = decoder_ranks.run_config(shards).model
    shape = DecoderConfig(vocabulary_size=size, **asdict(model))
    exports = ExportConfig(tokenizers=model_parts.tokenizers)
    made = HFExporter(run=run, shape=shape, keep=RetentionPolicy(), exports=exports).write_last()
    decoder = Decoder(shape)
    decoder.load_state_dict(torch.load(run / "weights.pt"))
    save_model(tmp_path, replace(model_parts, decoder=decoder))
    assert folder_bytes(made) == folder_bytes(tmp_path)


def test_ranks_go_back_together_and_end_where_one_process_ends(
    folder: Path, shards: Path, tmp_path: Path
) -> None:
    decoder_ranks.troubled(tmp_path, shards)
    one, two = (
        [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        for run in (tmp_path, folder / "trouble-2")
    )
    [*_, back] = one
    assert (back["event"], back["step"], back["rollback_to_step"], back["batches_consumed"]) == (
        "rollback",
        14,
        10,
        14,
    )
    assert two[-1] == back
    weights, expected = (torch.load(r / "weights.pt") for r in (folder / "trouble-2", tmp_path))
    for key, tensor in expected.items():
        assert torch.allclose(tensor, weights[key], atol=1e-4), key


def refusal(parallel: ParallelConfig, size: int, **shape: Any) -> str:
    ranks = Ranks(DistContext(0, size), CPU, parallel, torch.float32)
    with pytest.raises(ConfigError) as caught:
        build_sharded_decoder(replace(preset("tiny"), **shape), lambda made: [], ranks)
    return str(caught.value)


def test_ranks_that_do_not_divide_are_refused() -> None:
    assert refusal(ParallelConfig(data_parallel_replicate=2, tensor_parallel=2), 6) == (
        "6 ranks are no multiple of parallel.data_parallel_replicate=2 times parallel.tensor_parallel=2; expected one. "
        "Start another number, or give another --parallel.data-parallel-replicate "
        "or --parallel.tensor-parallel."
    )


def test_heads_that_cannot_be_shared_are_refused() -> None:
    assert refusal(ParallelConfig(tensor_parallel=8), 8) == (
        "parallel.tensor_parallel=8 does not divide 4 key heads and a feed-forward of 256; expected a "
        "divisor of both."
    )


def test_norms_in_groups_are_not_cut() -> None:
    assert refusal(ParallelConfig(tensor_parallel=2), 2, qk_norm_groups=2) == (
        "parallel.tensor_parallel=2 cuts the heads, but their norms stand in 2 groups; expected one. Use "
        "parallel.tensor_parallel=1, which shards all."
    )
