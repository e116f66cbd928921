"""The trainer of decoders: its state is complete."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from calumma.batches.loader import DataConfig, PackedLoader
from calumma.checkpoints.training_checkpoint import (
    RetentionPolicy,
    flatten_checkpoint,
    newest_checkpoint,
    write_checkpoint,
)
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.shards.reader import ShardReader
from calumma.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from calumma.train.decoder_trainer import DecoderTrainer, decoder_state, restore_decoder
from calumma.train.optimizer import make_optimizers
from tests.train.runs import assert_same_weights

CONFIG = TrainConfig(
    shards=Path("s"),
    steps=10,
    data=DataConfig(seq_len=32, global_batch_size=2, pack_window=2),
    optimizer=OptimizerConfig(name="muon", lr=1e-2),
    schedule=ScheduleConfig(warmup_steps=2),
)


def trainer(reader: ShardReader, shape: DecoderConfig, seed: int) -> DecoderTrainer:
    decoder = Decoder(shape)
    decoder.init_weights(seed)
    return DecoderTrainer(decoder, PackedLoader(reader, CONFIG.data), CONFIG, lambda step: {"pairs": 1})


def test_a_state_restored_in_another_trainer_makes_it_the_same(
    reader: ShardReader, decoder_config: DecoderConfig, tmp_path: Path
) -> None:
    one, other = trainer(reader, decoder_config, 0), trainer(reader, decoder_config, 1)
    for number in range(3):
        one.step(number)
    other.step(0)
    write_checkpoint(tmp_path, flatten_checkpoint(3, one.state(), {"seed": 0}), RetentionPolicy())
    saved = newest_checkpoint(tmp_path, {"seed": 0})
    assert saved is not None
    other.restore(saved)
    for number in range(3, 6):
        torch.manual_seed(number)
        first = one.step(number)
        second = other.step(number)
        assert first.loss == second.loss
    assert_same_weights(one.decoder, other.decoder)


def test_the_learning_rate_follows_the_schedule(reader: ShardReader, decoder_config: DecoderConfig) -> None:
    one = trainer(reader, decoder_config, 0)
    assert [one.step(number).lr for number in range(2)] == [5e-3, 1e-2]
    assert 0 <= (one.step(2).data_wait_fraction or 0.0) <= 1


def test_a_step_without_a_finite_gradient_is_skipped_and_the_run_goes_on(
    reader: ShardReader, decoder_config: DecoderConfig
) -> None:
    one = trainer(reader, decoder_config, 0)
    one.step(0)
    before = copy.deepcopy(one.decoder.state_dict())
    hook = one.decoder.norm.register_forward_hook(lambda module, x, made: made * torch.nan)
    metrics = one.step(1)
    hook.remove()
    assert (metrics.step_skipped, math.isnan(metrics.loss)) == (1, True)
    assert all(torch.equal(before[n], t) for n, t in one.decoder.state_dict().items())
    assert one.step(2).step_skipped == 0
    assert not torch.equal(before["head.weight"], one.decoder.head.weight)


class FakeCheckpoint:
    """A checkpoint of a state, without files."""

    def __init__(self, state: Any) -> None:
        self.state = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), state)

    def load_meta(self) -> Any:
        return self.state

    def load_into(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("rolls_back", [False, True], ids=["resume", "rollback"])
def test_restored_optimizer_state_is_on_the_device_of_the_parameters(
    decoder_config: DecoderConfig, name: Any, rolls_back: bool
) -> None:
    config = OptimizerConfig(name=name)
    on_cpu = Decoder(decoder_config)
    optimizers = make_optimizers(on_cpu, config)

    def take_step(decoder: Decoder, optimizers: list[torch.optim.Optimizer]) -> None:
        for parameter in decoder.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for optimizer in optimizers:
            optimizer.step()

    take_step(on_cpu, optimizers)
    saved: Any = FakeCheckpoint(decoder_state(on_cpu, optimizers) | {"position": {}})
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("meta"):
            decoder = Decoder(decoder_config)
        weights = {n: torch.empty_like(t, device="cuda") for n, t in decoder.state_dict().items()}
        decoder.load_state_dict(weights, assign=True)
        optimizers = make_optimizers(decoder, config)
        if rolls_back:
            take_step(decoder, optimizers)
        restore_decoder(saved, decoder, optimizers)
        for optimizer in optimizers:
            assert optimizer.state
            for parameter, state in optimizer.state.items():
                assert parameter.device.type == "cuda"
                assert {tensor.device for tensor in state.values()} == {parameter.device}
        take_step(decoder, optimizers)
