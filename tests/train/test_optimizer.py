"""Optimizers of each parameter, with weight decay and learning rate."""

import pytest
import torch

from calumma.errors import ConfigError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder
from calumma.train.config import OptimizerConfig
from calumma.train.optimizer import make_optimizers, set_lr


@pytest.fixture
def model(decoder_config: DecoderConfig) -> Decoder:
    return Decoder(decoder_config)


def names(model: Decoder, group: dict[str, object]) -> set[str]:
    inside = {id(parameter) for parameter in group["params"]}  # type: ignore[attr-defined]
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside}


def test_adamw_takes_everything_and_vectors_do_not_decay(model: Decoder) -> None:
    (adamw,) = make_optimizers(model, OptimizerConfig(lr=3e-3))
    matrices, vectors = adamw.param_groups
    assert names(model, matrices) | names(model, vectors) == set(dict(model.named_parameters()))
    assert not names(model, matrices) & names(model, vectors)
    assert all("norm" in name for name in names(model, vectors))
    assert not any("norm" in name for name in names(model, matrices))
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert (matrices["betas"], matrices["eps"], matrices["lr"]) == ((0.9, 0.95), 1e-5, 3e-3)


def test_muon_takes_the_blocks_matrices_alone(model: Decoder) -> None:
    adamw, muon = make_optimizers(model, OptimizerConfig(name="muon", muon_lr=0.05))
    assert isinstance(muon, torch.optim.Muon)
    (group,) = muon.param_groups
    expected = {
        f"blocks.{layer}.{name}.weight"
        for layer in range(2)
        for name in (
            *(f"attention.{part}" for part in ("query", "key", "value", "output")),
            *(f"feed_forward.{part}" for part in ("gate", "up", "down")),
        )
    }
    assert names(model, group) == expected
    assert group["lr"] == 0.05
    matrices, vectors = adamw.param_groups
    assert names(model, matrices) == {"embedding.weight", "head.weight"}
    assert names(model, vectors) == set(dict(model.named_parameters())) - expected - names(model, matrices)


def test_frozen_parameters_are_left_out(model: Decoder) -> None:
    model.embedding.weight.requires_grad_(False)
    (adamw,) = make_optimizers(model, OptimizerConfig())
    assert "embedding.weight" not in names(model, adamw.param_groups[0])


def test_the_factor_scales_the_peak_of_every_group(model: Decoder) -> None:
    optimizers = make_optimizers(model, OptimizerConfig(name="muon", lr=1.0, muon_lr=8.0))
    for factor in (0.5, 0.25):
        set_lr(optimizers, factor)
        lrs = [group["lr"] for one in optimizers for group in one.param_groups]
        assert lrs == [factor, factor, 8 * factor]


def test_muon_is_refused_with_sharded_matrices(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calumma.train.optimizer.device_mesh", lambda tensor: "a mesh")
    with pytest.raises(ConfigError) as caught:
        make_optimizers(model, OptimizerConfig(name="muon"))
    assert str(caught.value) == (
        "optimizer.name='muon' with matrices sharded over ranks; expected one process. Set "
        "optimizer.name='adamw', or start without torchrun."
    )
