"""Compare the JSON files of model folders with transformers' own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import ChameleonConfig

from calumma.checkpoints.hf_config import (
    chameleon_config,
    chameleon_tokenizer_config,
    fast_tokenizer_config,
    parse_chameleon_config,
    parse_vq_config,
    preprocessor_config,
    processor_config,
    special_token_ids,
)
from calumma.errors import CheckpointError
from calumma.model.config import DecoderConfig
from calumma.tokens.image import ImageTokenizer
from calumma.tokens.text import TextTokenizer
from calumma.tokens.vq.config import VQConfig


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"norm_order": "reordered"},
        {"rope_theta": 500.0, "norm_epsilon": 1e-3, "max_seq_len": 77},
        {"num_kv_heads": 4, "dropout": 0.0},
    ],
)
def test_round_trip_through_transformers(
    change: dict[str, object],
    decoder_config: DecoderConfig,
    image_tokenizer: ImageTokenizer,
    text_tokenizer: TextTokenizer,
    tmp_path: Path,
) -> None:
    shape = replace(decoder_config, **change)  # type: ignore[arg-type]
    written = chameleon_config(shape, image_tokenizer.config, text_tokenizer, torch.float32)
    assert parse_chameleon_config(written) == shape
    assert parse_vq_config(written["vq_config"]) == image_tokenizer.config
    ChameleonConfig(**written).save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "config.json").read_text())
    assert parse_chameleon_config(theirs) == shape
    assert parse_vq_config(theirs["vq_config"]) == image_tokenizer.config
    assert theirs["vocabulary_map"] == text_tokenizer.tokenizer.get_vocab(with_added_tokens=True)


def test_missing_entries_have_transformers_defaults() -> None:
    assert parse_vq_config({}) == VQConfig()
    theirs = ChameleonConfig()
    shape = parse_chameleon_config(theirs.to_dict())
    assert (shape.model_dim, shape.num_layers, shape.feed_forward_dim) == (4096, 32, 11008)
    assert (shape.vocabulary_size, shape.num_kv_heads, shape.norm_order) == (65536, 32, "pre")
    assert (shape.rope_theta, shape.norm_epsilon, shape.max_seq_len) == (10_000.0, 1e-5, 4096)


def test_encoder_context_is_written_only_where_it_is_not_the_releases() -> None:
    assert parse_vq_config({"encoder_context": "cell"}) == VQConfig(encoder_context="cell")


def test_old_entry_of_rope_theta_is_read() -> None:
    config = {
        "vocab_size": 9,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "rope_theta": 123.0,
    }
    assert parse_chameleon_config(config).rope_theta == 123.0
    assert parse_chameleon_config(config).num_kv_heads == 2


def test_preprocessor_maps_pixels_to_minus_one_to_one() -> None:
    record = preprocessor_config(VQConfig())
    assert 255 * record["rescale_factor"] - record["image_mean"][0] == pytest.approx(1)
    assert record["crop_size"] == {"height": 512, "width": 512}


def test_small_files_by_hand(text_tokenizer: TextTokenizer) -> None:
    assert special_token_ids(text_tokenizer.vocabulary) == {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    assert processor_config(VQConfig())["image_seq_length"] == 1024
    tokens = chameleon_tokenizer_config(77)
    assert (tokens["boi_token"], tokens["eoi_token"]) == ("<racm3:break>", "<eoss>")
    assert tokens["model_max_length"] == 77
    assert tokens["processor_class"] == "ChameleonProcessor"
    assert "processor_class" not in fast_tokenizer_config(77)


UNSUPPORTED = [
    ("hidden_act", "gelu", '"gelu"; expected "silu"'),
    ("attention_bias", True, "true; expected false"),
    ("mlp_bias", True, "true; expected false"),
    ("tie_word_embeddings", True, "true; expected false"),
]


@pytest.mark.parametrize(("name", "value", "expected"), UNSUPPORTED)
def test_unsupported_setting_is_refused(name: str, value: object, expected: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_chameleon_config({name: value}, "X/config.json")
    assert str(caught.value) == (
        f"X/config.json: {name} is {expected}, the only supported value. Use a model with that setting."
    )


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "yarn"}, "rope_theta": 10_000.0},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10_000.0}},
    ],
)
def test_scaled_rotary_embeddings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_chameleon_config(change, "X/config.json")
    assert str(caught.value) == (
        "X/config.json: rotary embeddings of type 'yarn'; expected 'default', since scaled ones "
        "are not implemented. Use the model from before its context was extended."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 48}, "its numbers do not fit together. model_dim=4096 "),
        ({"num_key_value_heads": 5}, "its numbers do not fit together. num_heads=32 "),
        (
            {"hidden_size": 0},
            "hidden_size is 0; expected an integer of at least 1. Copy the file again from where "
            "the weights are from.",
        ),
        (
            {"num_hidden_layers": "32"},
            'num_hidden_layers is "32"; expected an integer of at least 1. Copy the file again '
            "from where the weights are from.",
        ),
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1000000000; expected at most 10,000. Copy the file again from where the weights are "
            "from.",
        ),
        (
            {"rms_norm_eps": "1e-5"},
            'rms_norm_eps is "1e-5"; expected a number above 0. Copy the file again from where the weights are from.',
        ),
        (
            {"rope_parameters": [1]},
            "rope_parameters is [1]; expected a table of settings. Copy the file again from where the weights are "
            "from.",
        ),
    ],
)
def test_invalid_numbers_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_chameleon_config(change, "X/config.json")
    assert str(caught.value).startswith(f"X/config.json: {message}")


def test_unsupported_image_tokenizer_is_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_vq_config({"double_latent": True}, "X/config.json")
    assert str(caught.value) == (
        "X/config.json: double_latent of the image tokenizer is true; expected false, the only "
        "supported value. Use a model with that setting."
    )
    with pytest.raises(CheckpointError) as caught:
        parse_vq_config({"channel_multiplier": 4}, "X/config.json")
    assert str(caught.value) == (
        "X/config.json: a setting of the image tokenizer has another type ('int' object is not iterable); expected "
        "numbers and lists of them. Copy the file again from where the weights are from."
    )
    message = r"X/config\.json: its numbers do not fit together\. resolution=30 "
    with pytest.raises(CheckpointError, match=message):
        parse_vq_config({"resolution": 30}, "X/config.json")
