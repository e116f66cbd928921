"""Ranks train what one process trains, however they share it, and resume each other's runs."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
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
from calumma.train.hf_export import HFExporter
from calumma.train.parallelize import parallelize_decoder
from calumma.train.run_samples import samples_folder
from tests.checkpoints.random_models import folder_bytes
from tests.launch import free_ports, run_ranks
from tests.train import decoder_ranks
from tests.train.runs import assert_same_metrics, logged_events, logged_metrics


def with_ranks(size: int, tasks: decoder_ranks.Tasks) -> None:
    """Start ranks and wait for them."""
    tasks.folder.mkdir()
    ports = free_ports(3)
    run_ranks(size, decoder_ranks.do, tasks, ports, port=ports[0], logs=tasks.folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Train with one process, with 2 x 2 ranks, and with two.

    The four ranks also begin a run and die after its third step; one, two and three resume it.
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
    decoder_ranks.resume(made / "run-1", shards)
    rollback = made / "rollback-2"
    two = tasks("sharded", steps=ParallelConfig(), resume=made / "run-2", rollback=rollback)
    with_ranks(2, two)
    with_ranks(4, tasks("replicas", steps=ParallelConfig(data_parallel_replicate=2)))
    with_ranks(2, tasks("context", steps=ParallelConfig(context_parallel=2)))
    with_ranks(3, tasks("three", resume=made / "run-3"))
    return made


@pytest.mark.parametrize("name", decoder_ranks.SHAPES)
@pytest.mark.parametrize("ranks", ["sharded", "both", "replicas", "context"])
def test_ranks_train_what_one_process_trains(folder: Path, ranks: str, name: str) -> None:
    one, many = (json.loads((folder / f / f"{name}.json").read_text()) for f in ("one", ranks))
    assert len(one) == decoder_ranks.STEPS[name]
    for alone, shared in zip(one, many, strict=True):
        assert shared == pytest.approx(alone, abs=1e-5)
    weights, cut = (torch.load(folder / f / f"{name}.pt") for f in ("one", ranks))
    assert weights.keys() == cut.keys()
    for key, tensor in weights.items():
        assert torch.allclose(tensor, cut[key], atol=1e-5), key


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_run_of_four_ranks_resumes_with_another_number(folder: Path, undisturbed: Path, size: int) -> None:
    assert len(logged_metrics(folder / "begun")) == 3
    run = folder / f"run-{size}"
    assert_same_metrics(run, undisturbed)
    weights, expected = (torch.load(r / "weights.pt") for r in (run, undisturbed))
    for key, tensor in expected.items():
        assert torch.allclose(tensor, weights[key], atol=1e-5), key
    for step in (4, 6):
        pixels, alone = (
            np.asarray(PIL.Image.open(samples_folder(r, step) / "0.png"), np.int64) for r in (run, undisturbed)
        )
        assert abs(pixels - alone).max() <= 1 and alone.std() > 5


def test_the_model_folder_of_a_sharded_checkpoint_is_that_of_one_process(
    folder: Path, shards: Path, model_parts: ModelComponents, tmp_path: Path
) -> None:
    run = folder / "run-2"
    size = model_parts.tokenizers.text.vocabulary.size
    model = decoder_ranks.run_config(shards).model
    shape = DecoderConfig(vocabulary_size=size, **asdict(model))
    exporter = HFExporter(run=run, shape=shape, retention=RetentionPolicy(), tokenizers=model_parts.tokenizers)
    made = exporter.export_last()
    decoder = Decoder(shape)
    decoder.load_state_dict(torch.load(run / "weights.pt"))
    save_model(tmp_path, replace(model_parts, decoder=decoder))
    assert folder_bytes(made) == folder_bytes(tmp_path)


def test_ranks_roll_back_together_and_end_where_one_process_ends(folder: Path, shards: Path, tmp_path: Path) -> None:
    decoder_ranks.train_with_rollback(tmp_path, shards)
    one, two = (logged_events(run)[-1] for run in (tmp_path, folder / "rollback-2"))
    fields = ("event", "step", "rollback_to_step", "batches_consumed")
    assert [one[name] for name in fields] == ["rollback", 14, 10, 14]
    assert two == one
    weights, expected = (torch.load(r / "weights.pt") for r in (folder / "rollback-2", tmp_path))
    for key, tensor in expected.items():
        assert torch.allclose(tensor, weights[key], atol=1e-4), key


def refusal(parallel: ParallelConfig, size: int, **shape: Any) -> str:
    decoder = Decoder(replace(preset("tiny"), **shape))
    with pytest.raises(ConfigError) as caught:
        parallelize_decoder(decoder, DistContext(0, size), parallel, "cpu", torch.float32)
    return str(caught.value)


def test_ranks_that_do_not_divide_are_refused() -> None:
    assert refusal(ParallelConfig(data_parallel_replicate=2, tensor_parallel=2), 6) == (
        "6 ranks do not divide into parallel.data_parallel_replicate=2 times "
        "parallel.tensor_parallel=2; expected a multiple. Start another number of ranks, or change "
        "one of the two."
    )


def test_context_ranks_that_do_not_divide_are_refused() -> None:
    assert refusal(ParallelConfig(data_parallel_replicate=2, context_parallel=2), 6) == (
        "6 ranks do not divide into parallel.data_parallel_replicate=2 times "
        "parallel.context_parallel=2; expected a multiple. Start another number of ranks, or change "
        "one of the two."
    )
    assert refusal(ParallelConfig(context_parallel=4), 4, num_kv_heads=2) == (
        "parallel.context_parallel=4 does not divide 2 key/value heads; expected a divisor. Lower "
        "parallel.context_parallel."
    )


def test_heads_that_cannot_be_shared_are_refused() -> None:
    assert refusal(ParallelConfig(tensor_parallel=8), 8) == (
        "parallel.tensor_parallel=8 does not divide 4 key/value heads and feed_forward_dim=256; "
        "expected a divisor of both."
    )


def test_grouped_norms_are_not_sharded() -> None:
    assert refusal(ParallelConfig(tensor_parallel=2), 2, qk_norm_groups=2) == (
        "parallel.tensor_parallel=2 with 2 groups of QK-norm; expected one group. Set "
        "parallel.tensor_parallel=1; FSDP2 shards over all ranks."
    )
