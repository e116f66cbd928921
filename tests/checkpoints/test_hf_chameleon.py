"""Tests of Chameleon folders as other software writes them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calumma.checkpoints.hf_chameleon import chameleon_tensors, find_norm_groups
from calumma.checkpoints.model_folder import ModelComponents, load_model, open_model_folder
from calumma.errors import CheckpointError
from tests.checkpoints.random_models import save_random_model

PREFIX = "model.vqmodel."


@pytest.fixture
def folder(model_parts: ModelComponents, tmp_path: Path) -> Path:
    """Return a folder to change."""
    save_random_model(tmp_path, model_parts, qk_norm_groups=4)
    return tmp_path


def change(folder: Path, name: str, work: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / name)
    work(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_model_folder(folder)
    return str(caught.value)


def test_norms_are_repeated_for_every_head(folder: Path) -> None:
    weights, vq_decoder = chameleon_tensors(open_model_folder(folder))
    norm = weights["model.layers.0.self_attn.q_norm.bias"]
    assert norm.shape == (8, 8)
    assert torch.equal(norm.read()[0], norm.read()[1])
    assert not torch.equal(norm.read()[1], norm.read()[2])
    assert "decoder.conv_in.weight" in vq_decoder


def test_find_norm_groups_by_hand() -> None:
    a, b = torch.ones(1, 2), torch.zeros(1, 2)
    assert find_norm_groups([torch.cat([a, a, a, a])], 4) == 1
    assert find_norm_groups([torch.cat([a, a, b, b])], 4) == 2
    assert find_norm_groups([torch.cat([a, a, b, b]), torch.cat([a, b, a, b])], 4) == 4
    assert find_norm_groups([torch.cat([a, b, a, b])], 2) is None


def test_image_decoder_in_the_same_file_is_found(folder: Path, model_parts: ModelComponents) -> None:
    """Fine-tunes that generate images may keep it there."""
    decoder = load_file(folder / "vq_decoder.safetensors")
    (folder / "vq_decoder.safetensors").unlink()
    assert not load_model(folder).tokenizers.has_image_decoder
    change(folder, "model.safetensors", lambda t: t.update(_prefixed(decoder)))
    assert load_model(folder).tokenizers.has_image_decoder
    assert load_model(folder).tokenizers.image.fingerprint == model_parts.tokenizers.image.fingerprint
    change(folder, "model.safetensors", lambda t: t.pop(f"{PREFIX}post_quant_conv.weight"))
    assert refusal(folder).startswith(f"{folder} lacks the tensor {PREFIX}post_quant_conv.weight;")


def _prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def test_tensors_of_old_transformers_versions(folder: Path) -> None:
    def downgrade(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        for kind in ("weight", "bias"):
            del tensors[f"{PREFIX}post_quant_conv.{kind}"]

    (folder / "vq_decoder.safetensors").unlink()
    change(folder, "model.safetensors", downgrade)
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    assert not load_model(folder).tokenizers.has_image_decoder


def test_missing_and_unknown_tensors_are_refused(folder: Path) -> None:
    change(folder, "model.safetensors", lambda t: t.update({"model.extra": torch.ones(1)}))
    assert refusal(folder) == (
        f"{folder} holds the tensor model.extra, unknown in a Chameleon-family model; expected "
        "only its tensors. Take the config that belongs to these weights."
    )
    change(folder, "model.safetensors", lambda t: t.pop("lm_head.weight"))
    assert refusal(folder).startswith(f"{folder} lacks the tensor lm_head.weight; expected every")


def test_a_folder_without_a_text_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert refusal(folder) == (
        f"{folder} lacks tokenizer.json; expected the text tokenizer that belongs to its weights. Copy the folder "
        "again."
    )


def test_tensor_of_a_wrong_shape_is_refused(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change(folder, "model.safetensors", lambda t: t.update({name: torch.ones(3, 64)}))
    assert refusal(folder) == (
        f"{folder}: tensor {name} is [3, 64], but its config implies [48, 64]. Copy both again "
        "from where they were written together."
    )


def test_incomplete_image_decoder_is_refused(folder: Path) -> None:
    path = folder / "vq_decoder.safetensors"
    change(folder, path.name, lambda t: t.pop("decoder.conv_in.bias"))
    assert refusal(folder) == (
        f"{path} lacks the tensor decoder.conv_in.bias; expected every tensor of the decoder of an "
        "image tokenizer. Copy or download what is missing."
    )


def test_untied_norms_are_refused(folder: Path) -> None:
    def untie(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_norm.weight"][1] += 1

    change(folder, "model.safetensors", untie)
    assert refusal(folder) == (
        f"{folder}: the query norms differ between heads that share a key head (8 query, 4 key "
        "heads); expected norms tied within groups of heads. Use a model that was fine-tuned with "
        "tied norms."
    )
