"""Tests of model folders with qk_norm = "rms" or "none"."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
from calumma.checkpoints.hf_qwen3 import parse_qwen3_config
from calumma.checkpoints.model_folder import ModelComponents, load_model
from calumma.errors import CheckpointError
from tests.checkpoints.random_models import folder_bytes, save_random_model

OTHERS: dict[str, dict[str, Any]] = {
    "reordered": {"norm_order": "reordered"},
    "groups": {"qk_norm_groups": 4},
    "both": {"norm_order": "reordered", "qk_norm_groups": 2},
    "no norm": {"qk_norm": "none"},
}


@pytest.fixture
def folder(model_parts: ModelComponents, tmp_path: Path) -> Path:
    """Return a folder to change."""
    save_random_model(tmp_path / "model", model_parts, qk_norm="rms")
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    return str(caught.value)


def change_config(folder: Path, **change: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return path


@pytest.mark.parametrize("change", [{}, *OTHERS.values()], ids=["Qwen3", *OTHERS])
@pytest.mark.parametrize("has_decoder", [True, False])
def test_round_trip(change: dict[str, Any], has_decoder: bool, model_parts: ModelComponents, tmp_path: Path) -> None:
    saved = save_random_model(tmp_path, model_parts, has_image_decoder=has_decoder, **{"qk_norm": "rms", **change})
    loaded = load_model(tmp_path)
    assert (loaded.decoder.config, loaded.tokenizers.has_image_decoder) == (saved.config, has_decoder)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.decoder.state_dict()[name], tensor)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.tokenizers.image.encode(image), model_parts.tokenizers.image.encode(image))


@pytest.mark.parametrize("to", ["calumma", "qwen3"])
def test_conversion_round_trip_is_byte_exact(to: Any, folder: Path, tmp_path: Path) -> None:
    convert_model(open_model(folder), folder, tmp_path / "there", ConversionTarget(layout=to))
    convert_model(open_model(tmp_path / "there"), folder, tmp_path / "back", ConversionTarget(layout="calumma"))
    assert folder_bytes(tmp_path / "back") == folder_bytes(folder)


def test_main_folder_has_only_the_decoder_s_weights(folder: Path) -> None:
    """Engines load every safetensors file of the main folder."""
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_transformers_refuses_our_own_model_type(
    change: dict[str, Any], model_parts: ModelComponents, tmp_path: Path
) -> None:
    save_random_model(tmp_path, model_parts, **{"qk_norm": "rms", **change})
    with pytest.raises(ValueError, match="`calumma`"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "LayerNorm": ({}, "qk_norm", '"layer"', '"rms"'),
    "no norm": ({"qk_norm": "none"}, "qk_norm", '"none"', '"rms"'),
    "reordered": (
        {"qk_norm": "rms", "norm_order": "reordered"}, "norm_order", '"reordered"', '"pre"',
    ),
    "groups": ({"qk_norm": "rms", "qk_norm_groups": 4}, "qk_norm_groups", "4", "1"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "name", "found", "expected"), REFUSED.values(), ids=REFUSED)
def test_other_functions_are_refused(
    change: dict[str, Any], name: str, found: str, expected: str, model_parts: ModelComponents, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    save_random_model(source, model_parts, **change)
    with pytest.raises(CheckpointError) as caught:
        convert_model(open_model(source), source, tmp_path / "out", ConversionTarget(layout="qwen3"))
    assert str(caught.value) == (
        f"{source} has {name} = {found}; expected {expected} for Qwen3. Use --to calumma, or train "
        f"with {name} = {expected}."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_text_model_is_refused(folder: Path) -> None:
    (folder / "image_tokenizer" / "image_tokenizer.json").unlink()
    assert refusal(folder) == (
        f"{folder} is a text model without image_tokenizer/image_tokenizer.json; expected a Qwen3 "
        "folder that calumma wrote. Copy its image tokenizer into the folder."
    )


def test_image_tokenizer_without_weights_is_refused(folder: Path) -> None:
    (folder / "image_tokenizer" / "image_tokenizer.safetensors").unlink()
    assert refusal(folder) == (
        f"{folder / 'image_tokenizer'} lacks image_tokenizer.safetensors; expected the weights "
        "that belong to image_tokenizer.json. Copy the folder again."
    )


def test_invalid_image_tokenizer_config_is_refused(folder: Path) -> None:
    path = folder / "image_tokenizer" / "image_tokenizer.json"
    path.write_text('{"resolution": 0}')
    assert refusal(folder) == (
        f"{path}: is not an image tokenizer's config (resolution=0; expected at least 1.); "
        "expected the file that `calumma train-image-tokenizer` writes. Copy it again."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"head_dim": 128},
            "head_dim is 128; expected hidden_size / num_attention_heads = 8. Use a model with that head_dim.",
        ),
        (
            {"norm_order": "post"},
            "norm_order is 'post' and qk_norm_groups 1; expected 'pre' or 'reordered', and a "
            "positive number of groups. Copy the file again.",
        ),
        (
            {"qk_norm_groups": 3},
            "its numbers do not fit together. qk_norm_groups=3 does not divide num_heads=8 and "
            "num_kv_heads=4; expected a divisor of both.",
        ),
        ({"qk_norm": "layer"}, "qk_norm is 'layer'; expected 'rms' or 'none'. Copy the file again."),
        (
            {"use_sliding_window": True},
            "use_sliding_window is true; expected false, the only supported value. Use a model with that setting.",
        ),
    ],
)
def test_unsupported_setting_is_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    path = change_config(folder, **change)
    assert refusal(folder) == f"{path}: {message}"


def test_transformers_qwen3_config_is_read() -> None:
    theirs = transformers.Qwen3Config(
        vocab_size=64, hidden_size=64, num_attention_heads=8, head_dim=8, num_key_value_heads=2
    ).to_dict()
    shape = parse_qwen3_config(theirs, "config.json")
    assert (shape.qk_norm, shape.num_kv_heads, shape.norm_epsilon) == ("rms", 2, 1e-6)
