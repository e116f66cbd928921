"""Folders of decoders with qk_norm = "rms" or "none"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
from calumma.checkpoints.hf_qwen3 import parse_qwen3_config
from calumma.checkpoints.model_folder import ModelParts, load_model
from calumma.errors import CheckpointError
from tests.checkpoints.drawn import bytes_of, save_drawn

OTHERS: dict[str, dict[str, Any]] = {
    "re-ordered": {"norm_order": "reordered"},
    "groups": {"qk_norm_groups": 4},
    "both": {"norm_order": "reordered", "qk_norm_groups": 2},
    "no norm": {"qk_norm": "none"},
}


@pytest.fixture
def folder(model_parts: ModelParts, tmp_path: Path) -> Path:
    """A folder to change."""
    save_drawn(tmp_path / "model", model_parts, qk_norm="rms")
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
@pytest.mark.parametrize("draws", [True, False])
def test_a_folder_is_loaded_as_it_was_saved(
    change: dict[str, Any], draws: bool, model_parts: ModelParts, tmp_path: Path
) -> None:
    saved = save_drawn(tmp_path, model_parts, draws=draws, **{"qk_norm": "rms", **change})
    loaded = load_model(tmp_path)
    assert (loaded.decoder.config, loaded.tokenizers.has_image_decoder) == (saved.config, draws)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.decoder.state_dict()[name], tensor)
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(
        loaded.tokenizers.image.encode(picture), model_parts.tokenizers.image.encode(picture)
    )


@pytest.mark.parametrize("to", ["calumma", "qwen3"])
def test_there_and_back_every_byte_is_the_same(to: Any, folder: Path, tmp_path: Path) -> None:
    convert_model(open_model(folder), folder, tmp_path / "there", ConversionTarget(layout=to))
    convert_model(
        open_model(tmp_path / "there"),
        folder,
        tmp_path / "back",
        ConversionTarget(layout="calumma"),
    )
    assert bytes_of(tmp_path / "back") == bytes_of(folder)


def test_no_weights_lie_beside_the_config_but_the_decoder_s(folder: Path) -> None:
    """Engines read every safetensors file that lies there."""
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_what_no_other_software_has_claims_to_be_nothing_else(
    change: dict[str, Any], model_parts: ModelParts, tmp_path: Path
) -> None:
    save_drawn(tmp_path, model_parts, **{"qk_norm": "rms", **change})
    with pytest.raises(ValueError, match="`calumma`"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


REFUSED = {
    "the paper's": (
        {},
        "queries and keys have the paper's LayerNorm with bias, Qwen3 has an RMSNorm there, and no "
        'weights make one of the other. Use --to calumma, or train with qk_norm = "rms".',
    ),
    "no norm": (
        {"qk_norm": "none"},
        "queries and keys have no norm, Qwen3 has an RMSNorm there, and no weights undo it. Use "
        '--to calumma, or train with qk_norm = "rms".',
    ),
    "re-ordered": (
        {"qk_norm": "rms", "norm_order": "reordered"},
        "its norms are re-ordered (they stand behind the branches), Qwen3's stand before them, and "
        'no weights make one of the other. Use --to calumma, or train with norm_order = "pre".',
    ),
    "groups": (
        {"qk_norm": "rms", "qk_norm_groups": 4},
        "4 groups of heads have norms of their own, in Qwen3 all heads of a layer share one. Use "
        "--to calumma, or train with qk_norm_groups = 1.",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_qwen3_cannot_hold_is_refused_with_the_reason(
    change: dict[str, Any], message: str, model_parts: ModelParts, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    save_drawn(source, model_parts, **change)
    with pytest.raises(CheckpointError) as caught:
        convert_model(
            open_model(source), source, tmp_path / "out", ConversionTarget(layout="qwen3")
        )
    assert str(caught.value) == f"{source}: {message}"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_text_model_is_refused(folder: Path) -> None:
    (folder / "image_tokenizer" / "image_tokenizer.json").unlink()
    assert refusal(folder) == (
        f"{folder} is a text model without image_tokenizer/image_tokenizer.json; expected a Qwen3 "
        "folder that calumma wrote, with its image tokenizer beside it."
    )


def test_an_image_tokenizer_without_weights_is_refused(folder: Path) -> None:
    (folder / "image_tokenizer" / "image_tokenizer.safetensors").unlink()
    assert refusal(folder) == (
        f"{folder / 'image_tokenizer'} lacks image_tokenizer.safetensors; expected the weights that "
        "belong to image_tokenizer.json. Copy the folder again."
    )


def test_an_image_tokenizer_that_is_none_is_refused(folder: Path) -> None:
    path = folder / "image_tokenizer" / "image_tokenizer.json"
    path.write_text('{"resolution": 0}')
    assert refusal(folder) == (
        f"{path}: describes no image tokenizer (resolution=0; expected at least 1.); expected the file "
        "as `calumma train-image-tokenizer` writes it. Copy it again."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"head_dim": 128},
            "head_dim is 128; expected hidden_size over num_attention_heads, 8, since calumma's "
            "heads share the model's width.",
        ),
        (
            {"norm_order": "post"},
            "norm_order is 'post' and qk_norm_groups 1; expected 'pre' or 'reordered', and a whole "
            "number of groups. Copy the file again.",
        ),
        (
            {"qk_norm_groups": 3},
            "its numbers do not fit. qk_norm_groups=3 does not divide num_heads=8 and "
            "num_kv_heads=4; expected a divisor of both.",
        ),
        (
            {"qk_norm": "layer"},
            "qk_norm is 'layer'; expected 'rms' or 'none'. Copy the file again.",
        ),
        (
            {"use_sliding_window": True},
            "use_sliding_window is true; expected false, the only value that calumma's decoder "
            "knows. Loaded all the same, the model would be another one.",
        ),
    ],
)
def test_a_config_of_another_function_is_refused(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    path = change_config(folder, **change)
    assert refusal(folder) == f"{path}: {message}"


def test_a_real_qwen3_config_is_read() -> None:
    theirs = transformers.Qwen3Config(
        vocab_size=64, hidden_size=64, num_attention_heads=8, head_dim=8, num_key_value_heads=2
    ).to_dict()
    shape = parse_qwen3_config(theirs, "config.json")
    assert (shape.qk_norm, shape.num_kv_heads, shape.norm_epsilon) == ("rms", 2, 1e-6)
