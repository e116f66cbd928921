"""What is known of a model before it is read, and what is refused for it."""

from __future__ import annotations

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
from calumma.checkpoints.model_folder import ModelParts
from calumma.errors import CheckpointError, VocabularyError


def stored(**shapes: Shape) -> dict[str, LazyTensor]:
    return {name: LazyTensor.from_tensor(torch.zeros(shape)) for name, shape in shapes.items()}


def test_a_change_is_made_when_it_is_read() -> None:
    seen: list[int] = []

    def double(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return tensor * 2

    doubled = LazyTensor.from_tensor(torch.ones(2, 3, dtype=torch.bfloat16)).map((2, 3), double)
    assert (seen, doubled.num_bytes, doubled.dtype) == ([], 12, torch.bfloat16)
    assert doubled.read().tolist() == [[2.0] * 3] * 2


def test_shapes_are_those_of_the_modules(model_parts: ModelParts) -> None:
    decoder, network = model_parts.decoder, model_parts.tokenizers.image.network
    for module, shapes in (
        (decoder, decoder_tensor_shapes(decoder.config)),
        (network, vq_tensor_shapes(network.config)),
    ):
        assert shapes == {name: tuple(t.shape) for name, t in module.state_dict().items()}


WANTED: Mapping[str, Shape] = {"a": (2,), "b": (3, 4), "c": (1,), "d": (1,), "e": (1,)}
REFUSED = [
    (
        {"b": None},
        "X lacks the tensor b; expected every tensor of a toy. Copy or download what is missing.",
    ),
    (
        {"b": None, "c": None, "d": None, "e": None},
        "X lacks 4 tensors (b, c, d, ...); expected every tensor of a toy. Copy or download what is "
        "missing.",
    ),
    (
        {"f": (1,), "g": (1,)},
        "X holds 2 tensors (f, g), unknown in a toy; expected its own tensors and no other. This is "
        "another kind of model, or a config that is not its own.",
    ),
    (
        {"b": (4, 3)},
        "X: tensor b is [4, 3], but its config wants [3, 4]. Copy both again from where they were "
        "written together.",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_other_tensors_than_wanted_are_refused(
    change: dict[str, Shape | None], message: str
) -> None:
    shapes = {name: shape for name, shape in {**WANTED, **change}.items() if shape is not None}
    with pytest.raises(CheckpointError) as caught:
        require_tensors("X", stored(**shapes), WANTED, "a toy")
    assert str(caught.value) == message


def test_quantised_tensors_are_refused() -> None:
    codes = {"a": LazyTensor.from_tensor(torch.zeros(2, dtype=torch.int8))}
    with pytest.raises(CheckpointError) as caught:
        require_tensors("X", codes, {"a": (2,)}, "a toy")
    assert str(caught.value) == (
        "X: tensor a is of type torch.int8; expected a plain floating-point type, such as bfloat16. "
        "Quantised weights are not read."
    )


def test_the_tensors_wanted_are_taken() -> None:
    require_tensors("X", stored(**WANTED), WANTED, "a toy")


@pytest.fixture
def model(model_parts: ModelParts) -> LazyModel:
    return LazyModel(
        layout="in memory",
        decoder_config=model_parts.decoder.config,
        decoder_tensors={
            n: LazyTensor.from_tensor(t) for n, t in model_parts.decoder.state_dict().items()
        },
        vq_config=model_parts.tokenizers.image.config,
        vq_tensors={
            n: LazyTensor.from_tensor(t)
            for n, t in model_parts.tokenizers.image.network.state_dict().items()
        },
        tokenizer_json="",
        text_tokenizer=model_parts.tokenizers.text,
    )


def test_a_model_knows_its_size(model: LazyModel, model_parts: ModelParts) -> None:
    assert model.num_parameters == model_parts.decoder.num_parameters
    assert model.has_image_decoder
    assert not replace(model, image={}).has_image_decoder
    assert model.dtype == torch.float32
    assert replace(model, image={}).num_bytes == 4 * model.num_parameters


def test_tokenizers_of_another_model_are_refused(model: LazyModel) -> None:
    small = replace(model, shape=replace(model.decoder_config, vocabulary_size=300))
    with pytest.raises(VocabularyError) as caught:
        small.require_matching_vocabulary("X")
    assert str(caught.value) == (
        "X: the tokenizer has 324 ids, the decoder rows for 300; expected at least as many rows as "
        "ids. Take the tokenizer that the decoder was trained with."
    )
    other = replace(model, image_shape=replace(model.vq_config, num_codes=32))
    with pytest.raises(VocabularyError) as caught:
        other.require_matching_vocabulary("X")
    assert str(caught.value) == (
        "X: the image tokenizer has 32 codes, the vocabulary 16; expected as many. Take the "
        "tokenizers that the decoder was trained with."
    )
    model.require_matching_vocabulary("X")
