"""Tests of lazy tensors and models, and of the checks before they are read."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from calumma.checkpoints.lazy_tensor import (
    LazyModel,
    LazyTensor,
    Shape,
    decoder_tensor_shapes,
    require_tensors,
    vq_tensor_shapes,
)
from calumma.checkpoints.model_folder import ModelComponents
from calumma.errors import CheckpointError, VocabularyError


def lazy(**shapes: Shape) -> dict[str, LazyTensor]:
    return {name: LazyTensor.from_tensor(torch.zeros(shape)) for name, shape in shapes.items()}


def test_map_is_lazy() -> None:
    calls: list[int] = []

    def double(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return tensor * 2

    doubled = LazyTensor.from_tensor(torch.ones(2, 3, dtype=torch.bfloat16)).map((2, 3), double)
    assert (calls, doubled.num_bytes, doubled.dtype) == ([], 12, torch.bfloat16)
    assert doubled.read().tolist() == [[2.0] * 3] * 2


def test_tensor_shapes(model_parts: ModelComponents) -> None:
    decoder, network = model_parts.decoder, model_parts.tokenizers.image.network
    for module, shapes in (
        (decoder, decoder_tensor_shapes(decoder.config)),
        (network, vq_tensor_shapes(network.config)),
    ):
        assert shapes == {name: tuple(t.shape) for name, t in module.state_dict().items()}


EXPECTED: Mapping[str, Shape] = {"a": (2,), "b": (3, 4), "c": (1,), "d": (1,), "e": (1,)}
REFUSED = [
    ({"b": None}, "X lacks the tensor b; expected every tensor of a toy. Copy or download what is missing."),
    (
        {"b": None, "c": None, "d": None, "e": None},
        "X lacks 4 tensors (b, c, d, ...); expected every tensor of a toy. Copy or download what is missing.",
    ),
    (
        {"f": (1,), "g": (1,)},
        "X holds 2 tensors (f, g), unknown in a toy; expected only its tensors. Take the config "
        "that belongs to these weights.",
    ),
    (
        {"b": (4, 3)},
        "X: tensor b is [4, 3], but its config implies [3, 4]. Copy both again from where they were written together.",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_unexpected_tensors_are_refused(change: dict[str, Shape | None], message: str) -> None:
    shapes = {name: shape for name, shape in {**EXPECTED, **change}.items() if shape is not None}
    with pytest.raises(CheckpointError) as caught:
        require_tensors("X", lazy(**shapes), EXPECTED, "a toy")
    assert str(caught.value) == message


def test_quantized_tensors_are_refused() -> None:
    codes = {"a": LazyTensor.from_tensor(torch.zeros(2, dtype=torch.int8))}
    with pytest.raises(CheckpointError) as caught:
        require_tensors("X", codes, {"a": (2,)}, "a toy")
    assert str(caught.value) == (
        "X: tensor a is of type torch.int8; expected a plain floating-point type, such as "
        "bfloat16. Quantized weights are not read."
    )


def test_expected_tensors_are_accepted() -> None:
    require_tensors("X", lazy(**EXPECTED), EXPECTED, "a toy")


@pytest.fixture
def model(model_parts: ModelComponents) -> LazyModel:
    return LazyModel(
        layout="in memory",
        decoder_config=model_parts.decoder.config,
        decoder_tensors={n: LazyTensor.from_tensor(t) for n, t in model_parts.decoder.state_dict().items()},
        vq_config=model_parts.tokenizers.image.config,
        vq_tensors={
            n: LazyTensor.from_tensor(t) for n, t in model_parts.tokenizers.image.network.state_dict().items()
        },
        tokenizer_json="",
        text_tokenizer=model_parts.tokenizers.text,
    )


def test_sizes_of_a_model(model: LazyModel, model_parts: ModelComponents) -> None:
    assert model.num_parameters == model_parts.decoder.num_parameters
    assert model.has_image_decoder
    assert not replace(model, vq_tensors={}).has_image_decoder
    assert model.dtype == torch.float32
    assert replace(model, vq_tensors={}).num_bytes == 4 * model.num_parameters


def test_tokenizers_of_another_model_are_refused(model: LazyModel) -> None:
    small = replace(model, decoder_config=replace(model.decoder_config, vocabulary_size=300))
    with pytest.raises(VocabularyError) as caught:
        small.require_matching_vocabulary("X")
    assert str(caught.value) == (
        "X: the tokenizer has 324 token ids, the decoder embeds 300; expected at most as many. "
        "Take the tokenizer that the decoder was trained with."
    )
    other = replace(model, vq_config=replace(model.vq_config, num_codes=32))
    with pytest.raises(VocabularyError) as caught:
        other.require_matching_vocabulary("X")
    assert str(caught.value) == (
        "X: the image tokenizer has 32 codes, the vocabulary 16; expected the same number. Take "
        "the tokenizers that the decoder was trained with."
    )
    model.require_matching_vocabulary("X")
