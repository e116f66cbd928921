"""Tests of weights in one or several files, as in transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calumma.checkpoints.hf_weights import (
    HF_INDEX_FILE,
    hf_decoder_names,
    num_norm_heads,
    open_hf_weights,
    write_hf_weights,
)
from calumma.checkpoints.lazy_tensor import LazyTensor
from calumma.errors import CheckpointError
from calumma.model.config import DecoderConfig
from calumma.model.decoder import Decoder

TENSORS = {f"t{number}": torch.full((10,), float(number)) for number in range(5)}
LAZY = {name: LazyTensor.from_tensor(tensor) for name, tensor in TENSORS.items()}
"""40 bytes each."""


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Write three files and their index."""
    write_hf_weights(tmp_path, LAZY, max_shard_bytes=80)
    return tmp_path


def test_one_file_if_all_fits(tmp_path: Path) -> None:
    write_hf_weights(tmp_path, LAZY)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert set(open_hf_weights(tmp_path)) == set(TENSORS)


def test_several_files_with_an_index(three: Path) -> None:
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(path.name for path in three.iterdir()) == [*names, HF_INDEX_FILE]
    assert json.loads((three / HF_INDEX_FILE).read_text()) == {
        "metadata": {"total_size": 200},
        "weight_map": {
            "t0": names[0], "t1": names[0], "t2": names[1], "t3": names[1], "t4": names[2]
        },
    }  # fmt: skip
    assert set(load_file(three / names[1])) == {"t2", "t3"}
    assert all(torch.equal(each.read(), TENSORS[n]) for n, each in open_hf_weights(three).items())


def test_tensor_larger_than_a_file_has_its_own(tmp_path: Path) -> None:
    write_hf_weights(tmp_path, LAZY, max_shard_bytes=1)
    assert len(list(tmp_path.glob("model-*-of-00005.safetensors"))) == 5


def test_files_of_an_older_model_are_deleted(three: Path) -> None:
    write_hf_weights(three, LAZY, max_shard_bytes=120)
    assert len(list(three.glob("model*.safetensors"))) == 2
    write_hf_weights(three, LAZY)
    assert [path.name for path in three.iterdir()] == ["model.safetensors"]


def test_files_without_an_index_are_one_model(three: Path) -> None:
    (three / HF_INDEX_FILE).unlink()
    assert set(open_hf_weights(three)) == set(TENSORS)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_hf_weights(folder)
    return str(caught.value)


def test_missing_file_is_refused(three: Path) -> None:
    (three / "model-00002-of-00003.safetensors").unlink()
    assert refusal(three) == (
        f"{three} lacks the file model-00002-of-00003.safetensors, which its {HF_INDEX_FILE} "
        "lists; expected every file of the weights. Copy or download the missing one."
    )


def test_index_may_not_lead_to_another_folder(three: Path) -> None:
    record = json.loads((three / HF_INDEX_FILE).read_text())
    record["weight_map"]["t0"] = "../model-00001-of-00003.safetensors"
    (three / HF_INDEX_FILE).write_text(json.dumps(record))
    assert refusal(three).startswith(f"{three} lacks the file ../model-00001-of-00003")


def test_index_of_other_files_is_refused(three: Path) -> None:
    save_file({"t4": torch.zeros(1)}, three / "model-00002-of-00003.safetensors")
    assert refusal(three) == (
        f"{three / HF_INDEX_FILE} lists 2 tensors that no file has, such as t2; expected the files "
        "it was written with. Copy or download them again."
    )


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": {"a": 1}}'])
def test_index_without_a_map_is_refused(text: str, three: Path) -> None:
    (three / HF_INDEX_FILE).write_text(text)
    assert refusal(three) == (
        f"{three / HF_INDEX_FILE} has no weight_map from tensors to files; expected the index of "
        "sharded safetensors. Copy or download it again."
    )


@pytest.mark.parametrize("qk_norm", ["layer", "rms", "none"])
def test_every_tensor_has_a_unique_name(decoder_config: DecoderConfig, qk_norm: Any) -> None:
    config = replace(decoder_config, qk_norm=qk_norm)
    names = hf_decoder_names(config)
    assert set(names) == set(Decoder(config).state_dict())
    assert len(set(names.values())) == len(names)


def test_names_by_hand(decoder: Decoder) -> None:
    names = hf_decoder_names(decoder.config)
    assert names["head.weight"] == "lm_head.weight"
    assert names["blocks.1.attention.key.weight"] == "model.layers.1.self_attn.k_proj.weight"
    assert names["blocks.0.attention_norm.weight"] == "model.layers.0.input_layernorm.weight"


def test_num_norm_heads(decoder: Decoder) -> None:
    assert num_norm_heads("blocks.0.attention.query_norm.bias", decoder.config) == 4
    assert num_norm_heads("blocks.0.attention.key_norm.weight", decoder.config) == 2
    assert num_norm_heads("blocks.0.attention_norm.weight", decoder.config) is None
