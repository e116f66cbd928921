"""Folders with int4 weights: written, and loaded without the float weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import calumma
from calumma.checkpoints.model_folder import ModelComponents, load_model, open_model_folder, save_model
from calumma.checkpoints.peft_folder import write_adapter
from calumma.cli.main import main
from calumma.errors import GenerationError
from calumma.files import read_json, write_json
from calumma.model.decoder import Decoder
from calumma.model.quantization import Int4Linear
from tests.model.test_lora import random_adapter

IDS = [0, 4, 5, 40, 41, 20, 21]


@pytest.fixture(params=[("layer", 128), ("rms", 96)])
def components(request: pytest.FixtureRequest, model_parts: ModelComponents) -> ModelComponents:
    shape = replace(
        model_parts.decoder.config,
        model_dim=64,
        feed_forward_dim=request.param[1],
        num_heads=4,
        num_kv_heads=2,
        qk_norm=request.param[0],
    )
    decoder = Decoder(shape)
    decoder.init_weights(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 8)
    return replace(model_parts, decoder=decoder.eval())


@pytest.fixture
def folder(components: ModelComponents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(Path("float"), components)
    assert main(["convert", "float", "int4", "--to", "calumma", "--quantization", "int4"]) == 0
    return Path("int4")


def test_a_folder_computes_what_quantizing_at_loading_does(folder: Path) -> None:
    loaded = calumma.load(folder)
    assert isinstance(loaded.decoder.blocks[0].attention.query, Int4Linear)
    expected = calumma.load("float", quantization="int4")
    assert torch.equal(loaded.logits(IDS), expected.logits(IDS))
    plain = calumma.load("float").logits(IDS)
    assert not torch.equal(loaded.logits(IDS), plain)
    assert (loaded.logits(IDS) - plain).norm() / plain.norm() < 0.3
    assert repr(loaded) == repr(expected)
    options = {"max_new_tokens": 20, "seed": 3}
    assert loaded.generate(["a red"], **options).token_ids == expected.generate(["a red"], **options).token_ids


def test_bfloat16_is_for_all_tensors(folder: Path) -> None:
    small = calumma.load(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in small.decoder.parameters()} == {torch.bfloat16}
    expected = calumma.load(folder, dtype="float32").logits(IDS)
    assert (small.logits(IDS) - expected).norm() / expected.norm() < 0.05
    assert small.generate(["a red"], max_new_tokens=20).token_ids


def test_other_devices_widen_the_same_weights(folder: Path) -> None:
    kernel, decoder = calumma.load(folder), load_model(folder).decoder
    with torch.no_grad():
        widened = decoder(torch.tensor([IDS]))
    assert (kernel.logits(IDS) - widened).norm() / widened.norm() < 0.02


def test_head_embedding_and_norms_stay(folder: Path) -> None:
    plain, made = open_model_folder(Path("float")), open_model_folder(folder)
    for name, tensor in plain.decoder_tensors.items():
        assert (name in made.int4_matrices) == (".blocks." in f".{name}" and "norm" not in name), name
        if name not in made.int4_matrices:
            assert torch.equal(made.decoder_tensors[name].read(), tensor.read())


def test_adapters_are_computed_next_to_int4_weights(
    folder: Path, components: ModelComponents, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = random_adapter(components.decoder, 1)
    write_adapter(Path("lora"), adapter, components.decoder.config, Path("float"))
    expected = calumma.load(folder, adapters={"mine": "lora"}).logits(IDS, adapter="mine")
    for model in (calumma.load(folder, adapter="lora"), calumma.load("float", quantization="int4", adapter="lora")):
        assert isinstance(model.decoder.blocks[0].attention.query.base, Int4Linear)
        assert torch.equal(model.logits(IDS), expected)
    both = calumma.load(folder, adapter="lora", adapters={"mine": "lora"})
    first, second = (both.generate(["a red"], max_new_tokens=8, adapter=name) for name in ("", "mine"))
    assert first.token_ids == second.token_ids
    sample = ["--prompt", "a red", "--max-new-tokens", "4", "--modality", "text", "--out", "out"]
    assert main(["generate", "int4", "--adapter", "lora", *sample]) == 0
    capsys.readouterr()
    assert main(["inspect", "int4"]) == 0
    tensors, lazy, plain = (
        load_file(folder / "model.safetensors"),
        open_model_folder(folder),
        open_model_folder("float"),
    )
    int4_bytes = sum(tensor.nbytes for name, tensor in tensors.items() if name.endswith(("_packed", "_scale")))
    other_bytes = plain.num_bytes - sum(plain.decoder_tensors[name].num_bytes for name in lazy.int4_matrices)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"weights: int4 and float32, {int4_bytes + other_bytes:,} bytes, the decoder in 1 file"
    )


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["convert", *words]) == 2
    return capsys.readouterr().err


def test_int4_weights_are_only_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "int4", "out", "--to", "calumma") == (
        "error: int4 has int4 weights, which are only loaded; expected the float weights. Use the model that it was "
        "quantized from.\n"
    )
    assert refusal(capsys, "float", "out", "--to", "tokenizers", "--quantization", "int4") == (
        "error: --quantization int4 with --to tokenizers; expected --to calumma or qwen3. Leave it out.\n"
    )
    with pytest.raises(GenerationError) as caught:
        calumma.load(folder, quantization="int8")
    assert str(caught.value) == (
        "quantization='int8' of a folder with int4 weights; expected int4 or None. Leave it out, or load the folder "
        "of the float weights."
    )


def test_a_matrix_without_its_scales_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]
    save_file(tensors, path, {"format": "pt"})
    assert refusal(capsys, "int4", "out", "--to", "calumma") == (
        "error: int4 lacks model.layers.0.mlp.up_proj.weight_scale; expected the scales of every int4 matrix. Copy "
        "the folder again.\n"
    )


def test_folders_of_other_quantizations_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert refusal(capsys, "int4", "out", "--to", "calumma") == (
        "error: int4 has weights quantized by 'gptq'; expected symmetric int4 in groups, as `calumma convert "
        "--quantization int4` writes. Convert the float weights.\n"
    )
