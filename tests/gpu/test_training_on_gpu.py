"""Training on a GPU: loss and steps of a CPU, resuming, rolling back, and saving while training."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calumma.model.decoder import Decoder, LMHead
from calumma.train.compile_and_recompute import apply_recompute_and_compile
from calumma.train.config import CheckpointConfig, ComputeConfig, OptimizerConfig, ParallelConfig, PretrainConfig
from calumma.train.decoder_trainer import optimizer_step
from calumma.train.distributed import SINGLE_PROCESS, init_distributed
from calumma.train.float8 import to_float8
from calumma.train.loss import cross_entropy_and_z_loss
from calumma.train.optimizer import make_optimizers
from calumma.train.parallelize import parallelize_decoder
from calumma.train.pretraining import pretrain
from calumma.train.training_loop import TrainCallbacks
from tests.train import decoder_ranks
from tests.train.runs import KilledError, dies_after, logged_events, logged_metrics


def test_loss_and_gradients(device: torch.device) -> None:
    vocabulary = decoder_ranks.VOCABULARY
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 300, 64, generator=generator)
    labels = torch.randint(vocabulary.size, (3, 300), generator=generator)
    mask = torch.rand(3, 300, generator=generator) < 0.7
    weight = torch.randn(vocabulary.size, 64, generator=generator) * 0.05

    def gradients(where: torch.device, *, static_shapes: bool) -> list[torch.Tensor]:
        head = LMHead(64, vocabulary.size, bias=False, device=where)
        with torch.no_grad():
            head.weight.copy_(weight)
        x = hidden.to(where).requires_grad_()
        sums = cross_entropy_and_z_loss(
            x, head, labels.to(where), mask.to(where), vocabulary, z_loss_weight=1e-2, static_shapes=static_shapes
        )
        (sums.total / mask.sum()).backward()
        assert x.grad is not None and head.weight.grad is not None
        return [sums.total.detach().cpu(), x.grad.cpu(), head.weight.grad.cpu()]

    made = gradients(device, static_shapes=True)
    for one, other in zip(made, gradients(torch.device("cpu"), static_shapes=False), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def losses_of_steps(device: torch.device, compute: ComputeConfig, dtype: torch.dtype, run: Path) -> list[float]:
    """Return the losses of four steps of the small decoder, sharded by FSDP2."""
    shape = replace(decoder_ranks.SHAPE, num_layers=2)
    decoder = Decoder(shape)
    decoder.init_weights(0)
    if compute.precision == "float8":
        to_float8(decoder, compute.float8_scaling, emulate=device.type == "cpu")
    decoder.to(device).train()
    with init_distributed(device, run, groups_one_rank=True):
        layout = parallelize_decoder(decoder, SINGLE_PROCESS, ParallelConfig(), device.type, dtype)
        apply_recompute_and_compile(decoder, compute)
        optimizers = make_optimizers(decoder, OptimizerConfig(lr=1e-3))
        return [
            optimizer_step(
                decoder,
                optimizers,
                [decoder_ranks.random_batch(2 * number), decoder_ranks.random_batch(2 * number + 1)],
                vocabulary=decoder_ranks.VOCABULARY,
                z_loss_weight=1e-5,
                max_grad_norm=1.0,
                layout=layout,
            )
            .read()
            .loss
            for number in range(4)
        ]


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_steps(device: torch.device, dtype: torch.dtype, tmp_path: Path, recompute: str) -> None:
    compute = ComputeConfig(activation_checkpointing=recompute)  # type: ignore[arg-type]
    made = losses_of_steps(device, compute, dtype, tmp_path)
    expected = losses_of_steps(torch.device("cpu"), ComputeConfig(), torch.float32, tmp_path)
    assert made == pytest.approx(expected, rel=1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.filterwarnings("ignore")  # torchao's own, at import
@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_steps_in_float8(device: torch.device, dtype: torch.dtype, tmp_path: Path, scaling: str) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        pytest.skip("float8 with a scale for each row needs a Hopper GPU")
    compute = ComputeConfig(precision="float8", float8_scaling=scaling)  # type: ignore[arg-type]
    made = losses_of_steps(device, compute, dtype, tmp_path)
    expected = losses_of_steps(torch.device("cpu"), ComputeConfig(), torch.float32, tmp_path)
    assert made == pytest.approx(expected, rel=0.02)


def run_config(shards: Path, device: torch.device) -> PretrainConfig:
    config = replace(decoder_ranks.run_config(shards), device=device.type)
    return replace(config, checkpoint=CheckpointConfig(interval=2, async_save=True))


def test_a_killed_run_resumes(device: torch.device, shards: Path, tmp_path: Path) -> None:
    config = run_config(shards, device)
    pretrain(config, tmp_path / "expected")
    with pytest.raises(KilledError):
        pretrain(config, tmp_path / "run", dies_after(4))
    resumed = copy.copy(config)
    pretrain(resumed, tmp_path / "run")
    made, expected = ([one["loss"] for one in logged_metrics(tmp_path / run)] for run in ("run", "expected"))
    assert len(made) == config.steps
    assert made == pytest.approx(expected, rel=1e-3)


def test_a_spike_rolls_back(
    device: torch.device, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_config = decoder_ranks.run_config
    monkeypatch.setattr(decoder_ranks, "run_config", lambda shards: replace(run_config(shards), device=device.type))
    decoder_ranks.train_with_rollback(tmp_path, shards)
    assert logged_events(tmp_path)[-1]["event"] == "rollback"
    assert len(logged_metrics(tmp_path)) == 16


def test_a_checkpoint_that_is_saved_while_training_is_that_of_its_step(
    device: torch.device, shards: Path, tmp_path: Path
) -> None:
    tensors = {}
    for name, async_save in (("during", True), ("between", False)):
        config = run_config(shards, device)
        config = replace(config, checkpoint=CheckpointConfig(interval=2, keep_latest=9, async_save=async_save))
        if device.type == "cuda":
            # The same run, which a GPU may round otherwise: the first checkpoint is of the first steps.
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            pretrain(config, tmp_path / name, TrainCallbacks())
        finally:
            torch.use_deterministic_algorithms(False)
        [folder, *_] = sorted((tmp_path / name / "checkpoints").iterdir())
        files = sorted(folder.glob("*.safetensors"))
        assert files
        tensors[name] = {key: value for file in files for key, value in load_file(file).items()}
    assert tensors["during"].keys() == tensors["between"].keys()
    for key, value in tensors["between"].items():
        assert torch.allclose(tensors["during"][key].float(), value.float(), rtol=1e-4, atol=1e-6), key
