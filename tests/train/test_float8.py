"""Float8: refusals, and losses close to float32."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from calumma.errors import ConfigError
from calumma.model.decoder import Decoder
from calumma.train import float8
from calumma.train.adapters import LoRALinear
from calumma.train.config import ComputeConfig, OptimizerConfig, ParallelConfig, TrainConfig
from calumma.train.decoder_trainer import optimizer_step
from calumma.train.float8 import require_float8, to_float8
from calumma.train.optimizer import make_optimizers
from calumma.train.pretraining import pretrain
from tests.train import decoder_ranks

CONFIG = TrainConfig(shards=Path("s"), compute=ComputeConfig(precision="float8"))


def emulated(decoder: Decoder, scaling: Literal["tensor", "row"] = "tensor") -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's own, at import
        to_float8(decoder, scaling, emulate=True)


def refusal(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], **change: Any) -> str:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    parallel = ParallelConfig(tensor_parallel=change.pop("tensor", 1))
    compute = replace(CONFIG.compute, float8_scaling=change.pop("scaling", "tensor"))
    config = replace(CONFIG, parallel=parallel, compute=compute)
    shape = replace(decoder_ranks.SHAPE, **change)
    with pytest.raises(ConfigError) as caught:
        require_float8(config, shape, torch.device("cuda"))
    return str(caught.value)


def test_a_cpu_is_refused(shards: Path, tmp_path: Path) -> None:
    config = replace(decoder_ranks.run_config(shards), compute=CONFIG.compute)
    with pytest.raises(ConfigError) as caught:
        pretrain(config, tmp_path)
    assert str(caught.value) == (
        "compute.precision='float8' on a cpu; expected a GPU with float8. Set compute.precision='bfloat16'."
    )


def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, (8, 0)) == (
        "compute.precision='float8' with a scale for each tensor on a GPU of compute capability 8.0; expected at "
        "least 8.9 (L4, H100, H200, B200). Set compute.precision='bfloat16'."
    )
    assert refusal(monkeypatch, (8, 9), scaling="row") == (
        "compute.precision='float8' with a scale for each row on a GPU of compute capability 8.9; expected at "
        "least 9.0 (H100, H200, B200). Set compute.precision='bfloat16'."
    )


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda name: None)
    assert refusal(monkeypatch, (9, 0)) == (
        "compute.precision='float8' needs torchao, which is not installed. Install it with `pip "
        "install 'calumma[float8]'`, or set compute.precision='bfloat16'."
    )


def test_tensor_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, (9, 0), tensor=2) == (
        "compute.precision='float8' with parallel.tensor_parallel=2; expected 1. Set "
        "parallel.tensor_parallel=1 (FSDP2 shards over all ranks), or bfloat16."
    )


def test_dimensions_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, (9, 0), feed_forward_dim=40) == (
        "compute.precision='float8' with matrix dimensions 32, 16, 40; expected multiples of 16. "
        "Set compute.precision='bfloat16'."
    )


@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_steps_in_float8_have_nearly_the_loss_of_float32(scaling: Literal["tensor", "row"]) -> None:
    losses: dict[str, list[float]] = {}
    for kind in ("float32", "float8"):
        decoder = Decoder(decoder_ranks.SHAPE)
        decoder.init_weights(0)
        names = list(decoder.state_dict())
        if kind == "float8":
            emulated(decoder, scaling)
        assert list(decoder.state_dict()) == names
        optimizers = make_optimizers(decoder, OptimizerConfig(lr=1e-3))
        losses[kind] = [
            optimizer_step(
                decoder,
                optimizers,
                [decoder_ranks.random_batch(n)],
                vocabulary=decoder_ranks.VOCABULARY,
                z_loss_weight=0.0,
                max_grad_norm=1.0,
            )
            .read()
            .loss
            for n in range(5)
        ]
    assert losses["float8"] != losses["float32"]
    assert losses["float8"] == pytest.approx(losses["float32"], rel=0.02)


def test_only_the_matrices_of_the_blocks_are_converted() -> None:
    decoder = Decoder(decoder_ranks.SHAPE)
    block: Any = decoder.blocks[0]
    block.attention.query = LoRALinear(block.attention.query, 2, 1.0)
    emulated(decoder)
    assert type(block.attention.query) is LoRALinear
    assert type(block.attention.key).__name__ == "Float8Linear"
    assert isinstance(decoder.head, nn.Linear) and type(decoder.head).__name__ == "LMHead"
