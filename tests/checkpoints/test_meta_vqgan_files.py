"""Tests of a release's image tokenizer: `vqgan.yaml` and `vqgan.ckpt`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from calumma.checkpoints.lazy_tensor import LazyModel
from calumma.checkpoints.meta.vqgan_files import open_vqgan, vqgan_config, write_vqgan
from calumma.checkpoints.model_folder import ModelComponents, open_model_folder, save_model
from calumma.errors import CheckpointError
from calumma.tokens.vq.config import VQConfig

RELEASED = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 256
    n_embed: 8192
    ddconfig:
      double_z: false
      z_channels: 256
      resolution: 512
      in_channels: 3
      out_ch: 3
      ch: 128
      ch_mult:
      - 1
      - 1
      - 2
      - 2
      - 4
      num_res_blocks: 2
      attn_resolutions: []
      dropout: 0.0
    lossconfig:
      target: a.loss.of.Theirs
      params:
        disc_start: 100001
"""


@pytest.fixture
def model(model_parts: ModelComponents, tmp_path: Path) -> LazyModel:
    save_model(tmp_path / "own", model_parts)
    return open_model_folder(tmp_path / "own")


@pytest.fixture
def folder(model: LazyModel, tmp_path: Path) -> Path:
    write_vqgan(tmp_path / "vq", model, None)
    return tmp_path / "vq"


def test_round_trip(folder: Path, model: LazyModel) -> None:
    config, tensors = open_vqgan(folder)
    assert config == model.vq_config
    assert set(tensors) == set(model.vq_tensors)
    assert all(torch.equal(tensors[n].read(), t.read()) for n, t in model.vq_tensors.items())


def test_losses_in_the_checkpoint_are_ignored(folder: Path, model: LazyModel) -> None:
    content = torch.load(folder / "vqgan.ckpt", weights_only=True)
    content["state_dict"]["loss.discriminator.main.0.weight"] = torch.ones(3)
    torch.save(content, folder / "vqgan.ckpt")
    assert set(open_vqgan(folder)[1]) == set(model.vq_tensors)


def test_checkpoint_may_lack_the_decoder(model: LazyModel, tmp_path: Path) -> None:
    encoder = {n: t for n, t in model.vq_tensors.items() if not n.startswith("decoder.")}
    write_vqgan(tmp_path / "vq", replace(model, vq_tensors=encoder), None)
    assert set(open_vqgan(tmp_path / "vq")[1]) == set(encoder)


def test_decoder_without_post_quant_conv_is_refused(model: LazyModel, tmp_path: Path) -> None:
    rest = {n: t for n, t in model.vq_tensors.items() if not n.startswith("post_quant_conv.")}
    write_vqgan(tmp_path, replace(model, vq_tensors=rest), None)
    with pytest.raises(CheckpointError) as caught:
        open_vqgan(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'vqgan.ckpt'} lacks 2 tensors (post_quant_conv.weight, "
        "post_quant_conv.bias); expected every tensor of a VQGAN. Copy or download what is missing."
    )


def test_released_yaml_is_our_default_config(folder: Path) -> None:
    (folder / "vqgan.yaml").write_text(RELEASED)
    with pytest.raises(CheckpointError) as caught:
        open_vqgan(folder)
    # The weights are not the release's.
    assert "lacks " in str(caught.value)
    record = yaml.safe_load(RELEASED)["model"]["params"]
    ours = vqgan_config(VQConfig())["model"]["params"]
    assert ours["ddconfig"] == record["ddconfig"]
    assert (ours["embed_dim"], ours["n_embed"]) == (256, 8192)


def test_incomplete_yaml_is_refused(folder: Path) -> None:
    (folder / "vqgan.yaml").write_text("model:\n  params:\n    embed_dim: 4\n")
    with pytest.raises(CheckpointError) as caught:
        open_vqgan(folder)
    assert str(caught.value) == (
        f"{folder / 'vqgan.yaml'}: lacks 'ddconfig'; expected model.params with embed_dim, n_embed "
        "and ddconfig, as in taming-transformers. Copy or download it again."
    )


def test_missing_file_is_refused(folder: Path) -> None:
    (folder / "vqgan.ckpt").unlink()
    with pytest.raises(CheckpointError) as caught:
        open_vqgan(folder)
    assert str(caught.value) == (
        f"{folder} lacks vqgan.ckpt; expected the release's image tokenizer, vqgan.yaml and "
        "vqgan.ckpt. Use --tokenizers DIR if they are elsewhere."
    )
