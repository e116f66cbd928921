"""Edits: masked cells are generated, the codes of all others stay."""

from dataclasses import replace

import PIL.Image
import pytest

from calumma.checkpoints.model_folder import ModelComponents
from calumma.errors import GenerationError, ImageError
from calumma.generate.editing import edit_request, known_codes, masked_cells, require_same_size
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, ImageSampling, Request
from tests.images import noise

HOT = ImageSampling(temperature=2.0, top_p=1.0, guidance_scale=3.0, image_guidance_scale=1.5)


@pytest.fixture(scope="module")
def model(model_parts: ModelComponents) -> Model:
    return Model(model_parts)


def square_mask(*cells: int) -> PIL.Image.Image:
    """Return a mask of 2 x 2 cells of 8 pixels, transparent in one pixel of each of these cells."""
    mask = PIL.Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    for cell in cells:
        mask.putpixel((8 * (cell % 2) + 3, 8 * (cell // 2) + 4), (0, 0, 0, 0))
    return mask


@pytest.mark.parametrize("masked", [{0}, {3}, {1, 2}, {0, 1, 2, 3}])
@pytest.mark.parametrize("is_async", [False, True])
def test_masked_cells_change_and_all_others_stay(
    masked: set[int], is_async: bool, model_parts: ModelComponents
) -> None:
    model = Model(model_parts, engine_config=EngineConfig(async_scheduling=is_async))
    image = noise(3)
    codes = model.encode_image(image)
    found = []
    for seed in range(8):
        sample = model.edit(image, "make it blue", mask=square_mask(*masked), seed=seed, image=HOT)
        begin, *image_codes, end = sample.token_ids
        assert (begin, end) == (model.vocabulary.begin_image, model.vocabulary.end_image)
        found.append([model.vocabulary.id_to_code(id_) for id_ in image_codes])
        assert [code for cell, code in enumerate(found[-1]) if cell not in masked] == [
            code for cell, code in enumerate(codes) if cell not in masked
        ]
        kept = [score for cell, score in enumerate(sample.logprobs[1:-1]) if cell not in masked]
        assert kept == [0.0] * (4 - len(masked))
        (part,) = sample.decoded_parts
        assert isinstance(part, PIL.Image.Image) and part.size == (16, 16)
    for cell in masked:
        assert len({each[cell] for each in found}) > 1


def test_an_edit_without_a_mask_is_an_image_after_the_image_and_the_instruction(model: Model) -> None:
    request = edit_request(model, noise(3), "make it blue", seed=1)
    prompt = model.encode_chat([{"role": "user", "content": [noise(3), "make it blue"]}])
    assert list(request.prompt_token_ids) == prompt
    assert (request.modality, request.max_images, request.known_codes) == ("image", 1, ())


def test_an_edit_may_begin_with_text(model_parts: ModelComponents) -> None:
    model = Model(model_parts)
    model.default_image_sampling = replace(HOT, max_edit_text_tokens=5)
    codes = model.encode_image(noise(3))
    lengths = set()
    for seed in range(12):
        sample = model.edit(noise(3), "make it blue", mask=square_mask(2), seed=seed)
        start = sample.token_ids.index(model.vocabulary.begin_image)
        lengths.add(start)
        assert all(id_ in model.vocabulary.text for id_ in sample.token_ids[:start])
        found = [model.vocabulary.id_to_code(id_) for id_ in sample.token_ids[start + 1 : -1]]
        assert len(found) == 4 and found[:2] + found[3:] == codes[:2] + codes[3:]
    assert max(lengths) == 5  # a random model begins no image by itself


def test_known_cells_are_the_sampled_ones_with_the_same_choices(model: Model) -> None:
    """Forcing what is sampled anyway changes nothing: positions draw with seeds of their own."""
    free = model.edit(noise(3), "make it blue", seed=5, image=HOT)
    codes = [model.vocabulary.id_to_code(id_) for id_ in free.token_ids[1:-1]]
    request = edit_request(model, noise(3), "make it blue", seed=5, image=HOT)
    forced = model.generate_requests([replace_known(request, codes, {1, 2})])[0]
    assert forced.token_ids == free.token_ids


def replace_known(request: Request, codes: list[int], sampled: set[int]) -> Request:
    """Return a request with known codes, but for some cells."""
    return replace(request, known_codes=tuple(None if n in sampled else code for n, code in enumerate(codes)))


def test_edits_share_a_batch_with_speculation_elsewhere(model: Model) -> None:
    quick = ImageSampling(temperature=2.0, top_p=1.0, num_speculative_tokens=3)
    masked = edit_request(model, noise(3), "a", mask=square_mask(2), seed=1, image=quick)
    free = edit_request(model, noise(3), "a", seed=2, image=quick)
    together = [sample.token_ids for sample in model.generate_requests([masked, free])]
    assert together == [model.generate_requests([each])[0].token_ids for each in (masked, free)]


def test_a_mask_is_cropped_as_its_image(model: Model) -> None:
    mask = PIL.Image.new("1", (48, 16))
    mask.putpixel((17, 2), 1)
    mask.putpixel((1, 12), 1)  # outside the square
    request = edit_request(model, noise(3).resize((48, 16)), "a", mask=mask)
    assert [code is None for code in request.known_codes] == [True, False, False, False]


def test_a_margin_grows_the_selection() -> None:
    square = PIL.Image.new("L", (32, 32))
    square.putpixel((0, 31), 255)
    grid = [cell for cell, selected in enumerate(masked_cells(square, 8, 1)) if selected]
    assert grid == [8, 9, 12, 13]


def test_known_codes_are_those_of_the_first_image(model: Model) -> None:
    v = model.vocabulary
    prompt = [v.bos, v.begin_image, 4, 5, 6, 7, v.end_image, v.begin_image, 9, 9, 9, 9, v.end_image]
    assert known_codes(prompt, [False, True, True, False], v) == (0, None, None, 3)


def test_masks_that_do_not_fit_are_refused(model: Model) -> None:
    with pytest.raises(ImageError) as size:
        require_same_size((9, 16), (16, 16))
    assert str(size.value) == (
        "the mask has 9 x 16 pixels, its image 16 x 16; expected the same size. Resize the mask."
    )
    with pytest.raises(GenerationError) as empty:
        model.edit(noise(3), "a", mask=square_mask())
    assert str(empty.value) == (
        "the mask selects nothing; expected transparent pixels, or white ones in a mask without transparency. Paint "
        "the area to edit."
    )


def test_known_codes_of_another_grid_are_refused(model: Model) -> None:
    request = edit_request(model, noise(3), "a")
    for codes in ([1, 2, 3], [1, 2, 3, 16]):
        with pytest.raises(GenerationError) as caught:
            model.generate_requests([replace_known(request, codes, {0})])
        assert str(caught.value) == (
            f"known_codes has {len(codes)} entries; expected 4, the number of this model, each None or a code below "
            "16."
        )
