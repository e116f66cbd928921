"""Adapter folders: read, written, merged, and the same for PEFT."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calumma.checkpoints.model_folder import ModelComponents, load_model, open_model_folder, save_model
from calumma.checkpoints.peft_folder import merge_adapter, read_adapter, write_adapter
from calumma.errors import CheckpointError
from calumma.model.decoder import Decoder
from calumma.model.lora import Adapter, AdapterBatch
from tests.model.test_lora import IDS, merged, random_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def adapter(decoder: Decoder) -> Adapter:
    return random_adapter(decoder, 1)


@pytest.fixture
def folder(adapter: Adapter, decoder: Decoder, tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", adapter, decoder.config, Path("out/model"))
    return tmp_path / "adapter"


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.matrices.keys() == other.matrices.keys() and one.tables.keys() == other.tables.keys()
    for name, matrices in one.matrices.items():
        for first, second in zip(matrices[:2], other.matrices[name][:2], strict=True):
            assert torch.equal(first, second)
        assert matrices.scale == pytest.approx(other.matrices[name].scale)
    for name, table in one.tables.items():
        assert all(torch.equal(*pair) for pair in zip(table, other.tables[name], strict=True))


def test_a_written_adapter_is_read(adapter: Adapter, folder: Path, decoder: Decoder) -> None:
    assert_same(read_adapter(folder, decoder.config), adapter)
    rows_only = Adapter(tables=adapter.tables)
    write_adapter(folder, rows_only, decoder.config, Path("out/model"))
    assert_same(read_adapter(folder, decoder.config), rows_only)


def test_the_names_are_those_of_peft(folder: Path) -> None:
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert {name for name in names if ".1." not in name} == {
        "base_model.model.lm_head.token_adapter.trainable_tokens_delta",
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
    }


def test_merging_gives_the_logits_of_the_adapter(
    adapter: Adapter, folder: Path, model_parts: ModelComponents, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", model_parts)
    decoder = load_model(tmp_path / "model", folder).decoder
    assert torch.allclose(decoder(IDS), merged(model_parts.decoder, adapter)(IDS), atol=1e-6)
    lazy = merge_adapter(open_model_folder(tmp_path / "model"), adapter)
    half = lazy.decoder_tensors["blocks.0.attention.query.weight"]
    assert half.read().dtype == half.dtype


@pytest.mark.parametrize("tables", [True, False])
def test_peft_computes_our_logits(tables: bool, model_parts: ModelComponents, tmp_path: Path) -> None:
    import peft
    import transformers

    decoder = copy.deepcopy(model_parts.decoder)
    adapter = random_adapter(decoder, 3, tables=tables)
    save_model(tmp_path / "model", model_parts)
    write_adapter(tmp_path / "adapter", adapter, decoder.config, tmp_path / "model")
    base = transformers.ChameleonForConditionalGeneration.from_pretrained(tmp_path / "model")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    AdapterBatch(decoder, {"a": read_adapter(tmp_path / "adapter", decoder.config)}).select_all("a")
    # transformers sets the logits of image codes to the lowest number.
    text = model_parts.tokenizers.text.vocabulary.text
    with torch.no_grad():
        difference = (theirs(input_ids=IDS).logits - decoder(IDS))[..., text.start :]
    assert difference.abs().max() < 1e-5


PEFT_CONFIGS: dict[str, dict[str, Any]] = {
    "some matrices": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterns": {"r": 4, "target_modules": "all-linear", "rank_pattern": {"layers.1.self_attn.q_proj": 2},
                 "alpha_pattern": {"gate_proj": 3}},
    "whole tables": {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "some rows": {"r": 2, "target_modules": ["o_proj"], "trainable_token_indices": {"lm_head": [9, 4]}},
    "rows of the embedding": {"r": 2, "target_modules": ["o_proj"], "trainable_token_indices": [9, 4]},
}  # fmt: skip


@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_folders_of_peft_are_read(name: str, model_parts: ModelComponents, tmp_path: Path) -> None:
    import peft
    import transformers

    save_model(tmp_path / "model", model_parts)
    base = transformers.ChameleonForConditionalGeneration.from_pretrained(tmp_path / "model")
    theirs = peft.get_peft_model(base, peft.LoraConfig(**PEFT_CONFIGS[name])).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 8)
    theirs.save_pretrained(tmp_path / "adapter")
    decoder = copy.deepcopy(model_parts.decoder)
    AdapterBatch(decoder, {"a": read_adapter(tmp_path / "adapter", decoder.config)}).select_all("a")
    text = model_parts.tokenizers.text.vocabulary.text
    with torch.no_grad():
        difference = (theirs(input_ids=IDS).logits - decoder(IDS))[..., text.start :]
    assert difference.abs().max() < 1e-5


def refusal(folder: Path, decoder: Decoder) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_adapter(folder, decoder.config)
    return str(caught.value)


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_an_adapter_of_another_model_is_refused(folder: Path, decoder: Decoder) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {name: torch.zeros(2, 64)}, path)
    assert refusal(folder, decoder) == (
        f"{folder} is an adapter of another model: its blocks.0.attention.query is [32, 64], the model's [32, 32]; "
        "expected one of this model. Its base is out/model."
    )
    deeper = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {deeper: torch.zeros(2, 32)}, path)
    assert refusal(folder, decoder) == (
        f"{folder}: tensor {deeper} is of no module that adapters of this model change; expected LoRA of the "
        "decoder's matrices, or rows of its two tables. Use an adapter of this model."
    )


def test_half_an_update_is_refused(folder: Path, decoder: Decoder) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    save_file(tensors, path)
    assert refusal(folder, decoder) == (
        f"{folder} holds one of the two LoRA matrices of blocks.0.attention.query; expected both. Copy the folder "
        "again."
    )


def test_rows_without_their_tokens_are_refused(folder: Path, decoder: Decoder) -> None:
    change_config(folder, trainable_token_indices={"embed_tokens": [4, 5, 18, 40]})
    assert refusal(folder, decoder) == (
        f"{folder} has 4 rows of a vocabulary table for 0 token ids; expected as many. Copy both files again from "
        "where they were written together."
    )


def test_other_kinds_of_adapters_are_refused(folder: Path, decoder: Decoder, tmp_path: Path) -> None:
    expected = "lacks adapter_config.json; expected an adapter folder of `calumma finetune` or PEFT."
    assert refusal(tmp_path / "no", decoder) == f"{tmp_path / 'no'} {expected} Check the path."
    assert refusal(tmp_path, decoder) == f"{tmp_path} {expected} Name {tmp_path / 'adapter'}."
    change_config(folder, use_dora=True)
    assert refusal(folder, decoder) == (
        f"{folder} has use_dora = True; expected False. Merge the adapter with PEFT, and load the merged model."
    )
    change_config(folder, peft_type="IA3")
    assert refusal(folder, decoder) == (
        f"{folder} is a PEFT adapter of type 'IA3'; expected LORA or TRAINABLE_TOKENS. Use one."
    )
