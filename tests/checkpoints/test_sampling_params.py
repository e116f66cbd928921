"""The sampling defaults that a model folder brings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calumma.checkpoints.conversion import ConversionTarget, convert_model, open_model
from calumma.checkpoints.model_folder import ModelComponents, load_model, save_model
from calumma.checkpoints.sampling_params import (
    GENERATION_CONFIG_FILE,
    ImageSampling,
    SamplingOptions,
    TextSampling,
    read_sampling_options,
)
from calumma.errors import CheckpointError
from calumma.generate.model import Model, load

RULES = SamplingOptions(
    text=TextSampling(temperature=0.5, top_k=7), image=ImageSampling(guidance_scale=2.0, image_guidance_scale=1.0)
)


@pytest.fixture
def folder(model_parts: ModelComponents, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", replace(model_parts, sampling=RULES))
    return tmp_path / "model"


def test_a_model_starts_from_the_rules_of_its_folder(folder: Path) -> None:
    assert load_model(folder).sampling == RULES
    model = load(folder, device="cpu")
    assert (model.default_text_sampling, model.default_image_sampling) == (RULES.text, RULES.image)
    request = model.request(["a"])
    assert (request.text, request.image) == (RULES.text, RULES.image)
    own = TextSampling(temperature=0.0)
    assert model.request(["a"], text=own).text == own
    sample = model.generate(["a red "], max_new_tokens=7, seed=3, modality="image", max_images=1)
    same = Model(replace(model.components, sampling=SamplingOptions())).generate(
        ["a red "], max_new_tokens=7, seed=3, modality="image", max_images=1, image=RULES.image
    )
    assert sample.token_ids == same.token_ids


def test_a_folder_without_rules_has_those_of_the_release(folder: Path) -> None:
    path = folder / GENERATION_CONFIG_FILE
    path.write_text('{"bos_token_id": 0, "temperature": 0.1}')
    assert load_model(folder).sampling == SamplingOptions()
    path.write_text('{"image_sampling": {"guidance_scale": 2.5}}')
    assert read_sampling_options(folder).image == ImageSampling(guidance_scale=2.5)
    path.unlink()
    assert load_model(folder).sampling == SamplingOptions()


def test_transformers_reads_and_keeps_the_rules(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 2, 1)
    theirs.save_pretrained(tmp_path)
    assert read_sampling_options(tmp_path) == RULES


def test_a_converted_model_keeps_its_rules(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    convert_model(open_model(folder), folder, out, ConversionTarget(layout="calumma"))
    assert read_sampling_options(out) == RULES


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"image_sampling": {"guidance": 2.0}}, "guidance"),
        ({"text_sampling": {"top_p": 7.0}}, "top_p=7.0"),
        ({"text_sampling": 3}, "text"),
        ([1], "Found list; expected a JSON object."),
    ],
)
def test_a_wrong_rule_is_refused_in_one_line(folder: Path, record: object, found: str) -> None:
    (folder / GENERATION_CONFIG_FILE).write_text(json.dumps(record))
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / GENERATION_CONFIG_FILE}: its sampling parameters")
    assert found in message
    assert "\n" not in message
