"""Images diagonal by diagonal: equal to a direct computation, in H + W - 1 steps."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calumma.errors import GenerationError
from calumma.generate.diagonal import DiagonalImage
from calumma.generate.engine import Engine
from calumma.generate.params import EngineConfig, ImageSampling, Request
from calumma.generate.sampling_ops import SamplingTensors, apply_cfg, sample_tokens, uniform_from_seed
from calumma.generate.sequence_state import SequenceState
from calumma.model.decoder import Decoder
from calumma.model.downward_head import DownwardHead, diagonals
from calumma.vocabulary import Vocabulary

V = Vocabulary(num_codes=16, num_text=300)
SIDE = 4
COUNT = SIDE * SIDE


@pytest.fixture(scope="module")
def headed(decoder: Decoder) -> Decoder:
    """Return the decoder with a random downward head."""
    made = copy.deepcopy(decoder)
    made.downward_head = DownwardHead(decoder.config.model_dim)
    generator = torch.Generator().manual_seed(3)
    for parameter in made.downward_head.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return made.requires_grad_(False)


def head_inputs(decoder: Decoder, context: Sequence[int], codes: dict[int, int], cells: Sequence[int]) -> Tensor:
    """Compute the input of the head for some cells, without a KV cache; the context ends with begin-of-image."""
    known = [cell for each in diagonals(SIDE, SIDE) for cell in each if cell in codes]
    ids = torch.tensor([[*context, *(codes[cell] for cell in known)]])
    positions = torch.tensor([[*range(len(context)), *(len(context) + cell for cell in known)]])
    hidden = decoder(ids, position_ids=positions, head_fn=decoder.norm)[0]
    row = {cell: len(context) + index for index, cell in enumerate(known)}
    rows = []
    for cell in cells:
        left = len(context) - 1 if cell == 0 else row[cell - 1] if cell % SIDE else None
        above = row[cell - SIDE] if cell >= SIDE else None
        assert decoder.downward_head is not None
        rows.append(
            decoder.downward_head(
                hidden[[left or 0]],
                hidden[[above or 0]],
                torch.tensor([left is not None]),
                torch.tensor([above is not None]),
            )
        )
    return torch.cat(rows)


def expected_image(decoder: Decoder, request: Request) -> list[int]:
    """Return the codes of a request whose output begins with an image."""
    cond = [*request.prompt_token_ids, V.begin_image]
    codes: dict[int, int] = {}
    for cells in diagonals(SIDE, SIDE):
        weight = decoder.head.weight[V.codes.start : V.codes.stop]
        both = [head_inputs(decoder, each, codes, cells) @ weight.T for each in (cond, [V.bos, V.begin_image])]
        scales = torch.tensor([[request.image.guidance_scale, request.image.image_guidance_scale]] * len(cells))
        logits = apply_cfg(both[0], both[1], both[1], scales)
        params = SamplingTensors.build([request.image] * len(cells), torch.device("cpu"))
        uniform = uniform_from_seed(torch.tensor([request.seed] * len(cells)), torch.tensor([1 + c for c in cells]))
        sampled = sample_tokens(logits, params, uniform)
        codes |= {cell: V.codes.start + int(code) for cell, code in zip(cells, sampled, strict=True)}
    return [codes[cell] for cell in range(COUNT)]


def requests() -> list[Request]:
    return [
        Request(
            prompt_token_ids=(0, 30 + number, *range(31, 31 + 7 * number)),
            image=ImageSampling(temperature=temperature, top_p=0.9, guidance_scale=scale, image_guidance_scale=1.0),
            seed=number,
            modality="image",
            max_images=1,
            max_new_tokens=COUNT + 2,
            image_decoding="diagonal",
        )
        for number, (temperature, scale) in enumerate([(0.0, 1.0), (0.7, 3.0), (1.0, 1.0), (1.0, 2.0)])
    ]


def test_a_batch_gets_the_codes_of_a_direct_computation(headed: Decoder) -> None:
    engine = Engine(headed, V, COUNT)
    raster = [replace(request, image_decoding="raster") for request in requests()]
    states = engine.submit_all([*requests(), *raster])
    steps = 0
    while not all(state.is_finished for state in states[:4]):
        engine.step()
        steps += 1
    assert steps == 2 * SIDE - 1
    while not engine.is_idle:
        engine.step()
    for state, request in zip(states, requests(), strict=False):
        codes = expected_image(headed, request)
        assert state.output_token_ids == [V.begin_image, *codes, V.end_image]
        assert len(state.logprobs) == COUNT + 2 and all(logprob < 0 for logprob in state.logprobs[1:-1])
    alone = Engine(headed, V, COUNT, config=EngineConfig(prefill_chunk_size=3)).generate(raster)
    assert [state.output_token_ids for state in states[4:]] == [state.output_token_ids for state in alone]
    assert engine.stats.num_reserved_tokens == 0


@pytest.mark.parametrize("is_async", [False, True])
def test_text_and_a_second_image_follow(headed: Decoder, is_async: bool) -> None:
    """After an image the sequence is that of reading order, whatever is generated next."""
    request = replace(requests()[1], modality="any", max_images=2, max_new_tokens=2 * COUNT + 12, image_first=True)
    engine = Engine(headed, V, COUNT, config=EngineConfig(async_scheduling=is_async))
    (state,) = engine.generate([request])
    assert state.output_token_ids[1 : COUNT + 1] == expected_image(headed, request)
    (again,) = engine.generate([request])
    assert again.output_token_ids == state.output_token_ids  # the cached prefix ends before the image
    continued = replace(request, prompt_token_ids=(*request.prompt_token_ids, *state.output_token_ids[: COUNT + 2]))
    (after,) = engine.generate([replace(continued, max_images=0, image_first=False, max_new_tokens=3)])
    fresh = Engine(headed, V, COUNT).generate([replace(continued, max_images=0, image_first=False, max_new_tokens=3)])
    assert after.output_token_ids == fresh[0].output_token_ids


def test_images_with_known_codes_are_generated_one_by_one(headed: Decoder) -> None:
    known = (5, *[None] * (COUNT - 1))
    request = replace(requests()[2], known_codes=known)
    engine = Engine(headed, V, COUNT)
    diagonal, raster = engine.generate([request, replace(request, image_decoding="raster")])
    assert diagonal.output_token_ids == raster.output_token_ids


def test_a_model_without_the_head_and_an_unknown_order_are_refused(decoder: Decoder) -> None:
    with pytest.raises(GenerationError) as refused:
        Engine(decoder, V, COUNT).submit(requests()[0])
    assert str(refused.value) == (
        "image_decoding='diagonal' of a model without a downward head, or on several ranks; expected 'raster'. Train "
        "such a head with downward_head = 'head' in the config of `calumma finetune`."
    )
    with pytest.raises(GenerationError) as refused:
        Request(prompt_token_ids=(0,), image_decoding="spiral")  # type: ignore[arg-type]
    assert str(refused.value) == "image_decoding='spiral' is not known; expected raster or diagonal."


def test_the_codes_of_a_diagonal_are_appended_in_its_order() -> None:
    sequence = SequenceState([0, 9], num_computed_tokens=2)
    image = DiagonalImage(2, 2, [sequence])
    assert (image.cells, image.neighbors(), image.num_previous) == ([0], [(0, None)], 1)
    assert image.accept([sequence], [(10, -1.0, {})]) == []
    sequence.num_computed_tokens += 1
    assert (image.cells, image.neighbors(), image.num_previous) == ([1, 2], [(0, None), (None, 0)], 1)
    assert image.accept([sequence], [(11, -1.0, {}), (12, -1.0, {})]) == []
    assert sequence.token_ids == [0, 9, 10, 11, 12] and sequence.num_shareable == 2
    sequence.num_computed_tokens += 2
    assert (image.cells, image.neighbors(), image.num_previous) == ([3], [(0, 1)], 2)
    codes = image.accept([sequence], [(13, -2.0, {})])
    assert [id_ for id_, _, _ in codes] == [10, 11, 12, 13]
    assert (sequence.token_ids, sequence.num_computed_tokens, sequence.num_accepted) == ([0, 9], 2, 3)
