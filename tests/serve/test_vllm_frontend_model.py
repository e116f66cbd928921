"""The part of a model in front of vLLM: tokenizers, without the decoder's weights."""

from pathlib import Path

import pytest

from calumma.checkpoints.hf_chameleon import VQ_DECODER_FILE
from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import CheckpointError, GenerationError
from calumma.generate.model import Model
from calumma.serve.api_errors import APIError
from calumma.serve.request_params import resolve_modality
from calumma.serve.vllm.frontend_model import FrontendModel
from tests.generate.test_image_sizes import sized_model
from tests.images import noise


def test_prompts_and_images_are_the_model_s_without_its_weights(
    model_parts: ModelComponents, model: Model, tmp_path: Path
) -> None:
    save_model(tmp_path, model_parts)
    frontend = FrontendModel(tmp_path)
    assert all(parameter.is_meta for parameter in frontend.decoder.parameters())
    prompt = [noise(1), "a red circle"]
    assert frontend.request(prompt) == model.request(prompt)
    codes = [1, 2, 3, 4]
    assert frontend.decode_image(codes).tobytes() == model.decode_image(codes).tobytes()
    state = frontend.state_of(frontend.request(["a"], max_new_tokens=5))
    assert state.grammar.max_remaining_tokens == 5
    with pytest.raises(GenerationError) as caught:
        frontend.state_of(model.request(["a"] * 500))
    assert str(caught.value).startswith("the prompt has ")
    with pytest.raises(GenerationError) as caught:
        frontend.prompt_logprobs([[1, 2]])
    assert str(caught.value) == (
        "log probabilities of prompts are not computed with vLLM; expected a server without it, or no echo."
    )


def test_images_of_any_size_are_refused(model_parts: ModelComponents, tmp_path: Path) -> None:
    save_model(tmp_path, sized_model(model_parts).components)
    frontend = FrontendModel(tmp_path)
    assert frontend.state_of(frontend.request(["a"], max_images=0)).grammar.max_images == 0
    with pytest.raises(GenerationError) as caught:
        frontend.state_of(frontend.request(["a"]))
    assert str(caught.value) == (
        "vLLM draws squares, and this model's images have any size; expected text only. Set max_images to 0."
    )


def test_a_model_without_image_decoder_generates_text_alone(model_parts: ModelComponents, tmp_path: Path) -> None:
    save_model(tmp_path, model_parts)
    (tmp_path / VQ_DECODER_FILE).unlink()
    frontend = FrontendModel(tmp_path)
    assert resolve_modality(None, frontend) == "text"
    with pytest.raises(APIError) as caught:
        resolve_modality(["image"], frontend)
    assert str(caught.value) == ('this model generates no images; expected modalities ["text"]. Request text only.')


def test_a_folder_without_decoder_is_rejected(model_parts: ModelComponents, tmp_path: Path) -> None:
    save_model(tmp_path, model_parts)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        FrontendModel(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no model*.safetensors; expected the weights of a Chameleon-family model. Pickled weights "
        "(.bin) are not read: save them as safetensors."
    )
