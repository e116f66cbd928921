"""Images of any aspect ratio and size: Lumina-mGPT's layout, from prompts to generated images."""

import random
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch

import calumma
from calumma.checkpoints.model_folder import ModelComponents, save_model
from calumma.errors import GenerationError
from calumma.generate.grammar import Grammar, TokenKind, image_grid_of, image_length, image_template
from calumma.generate.model import Model
from calumma.generate.params import EngineConfig, ImageSampling, TextSampling
from calumma.model.decoder import Decoder
from calumma.tokens.folder import Tokenizers
from calumma.tokens.sequence import CodeGrid, encode_image_codes, split_modalities
from calumma.tokens.text import TextTokenizer
from calumma.vocabulary import ImageSizeTokens, Vocabulary
from tests.conftest import TEXTS
from tests.images import noise

HOT = ImageSampling(temperature=2.0, top_p=1.0, guidance_scale=3.0)


@pytest.fixture(scope="module")
def model(model_parts: ModelComponents) -> Model:
    return sized_model(model_parts)


def sized_model(model_parts: ModelComponents) -> Model:
    """Return a random model of images of at most 16 cells of 8 pixels, sides in units of two cells."""
    first = Vocabulary(num_codes=16, num_text=0).placeholder + 1
    sizes = ImageSizeTokens(newline=first, first_size=first + 1, max_cells=16)
    text = TextTokenizer.train(TEXTS * 4, num_text=300, num_codes=16, image_sizes=sizes)
    decoder = Decoder(replace(model_parts.decoder.config, vocabulary_size=text.vocabulary.size))
    decoder.init_weights(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 8)
    return Model(ModelComponents(decoder, Tokenizers(text, model_parts.tokenizers.image)))


def lumina() -> Vocabulary:
    sizes = ImageSizeTokens(newline=8803, first_size=8804, max_cells=2304)
    return replace(Vocabulary.release(), image_sizes=sizes)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (2, 2, [8197, 8805, 8805, 4, 5, 8803, 6, 7, 8803, 8196]),
        (2, 4, [8197, 8805, 8806, 4, 5, 6, 7, 8803, 8, 9, 10, 11, 8803, 8196]),
        (4, 2, [8197, 8806, 8805, 4, 5, 8803, 6, 7, 8803, 8, 9, 8803, 10, 11, 8803, 8196]),
    ],
)
def test_the_layout_is_that_of_lumina_mgpt(rows: int, columns: int, expected: list[int]) -> None:
    vocabulary = lumina()
    codes = CodeGrid(range(rows * columns), rows, columns)
    ids = encode_image_codes(codes, vocabulary)
    assert ids == expected
    [(kind, run)] = split_modalities(ids, vocabulary)
    assert isinstance(run, CodeGrid)
    assert (kind, run, run.rows, run.columns) == ("image", codes, rows, columns)
    assert vocabulary.count_modalities(ids).text_tokens == 0
    template = image_template(vocabulary, (rows, columns))
    assert [id_ if id_ is not None else -1 for id_ in template] == [
        -1 if id_ in vocabulary.codes else id_ for id_ in expected[1:-1]
    ]
    assert len(ids) == image_length(vocabulary, 1024, (rows, columns))


@pytest.mark.parametrize("target_size", [512, 768, 1024])
def test_grids_are_those_of_lumina_mgpt(target_size: int) -> None:
    """Its public description: all (w, h) in units of 32 pixels on the border of w * h <= n, four-fold at most."""
    n = (target_size // 32) ** 2
    border = {(w, h) for w in range(1, n + 1) for h in range(1, n + 1) if w * h <= n < (w + 1) * (h + 1)}
    grids = ImageSizeTokens(newline=8803, first_size=8804, max_cells=4 * n).grids
    assert (target_size // 16, target_size // 16) in grids
    assert {(columns // 2, rows // 2) for rows, columns in grids} <= border
    for w, h in {(w, n // w) for w in range(1, n + 1) if max(w, n // w) <= 4 * min(w, n // w)}:
        assert (2 * h, 2 * w) in grids
    assert max(max(grid) / min(grid) for grid in grids) <= 4


def test_squares_have_the_same_tokens_as_before(model_parts: ModelComponents) -> None:
    v = model_parts.tokenizers.text.vocabulary
    assert encode_image_codes([1, 2, 3, 4], v) == [v.begin_image, 5, 6, 7, 8, v.end_image]
    assert image_template(v, (2, 2)) == ()
    assert v.fingerprint == Vocabulary(num_codes=16, num_text=300).fingerprint == "086eb6e50df7"


def test_10_000_random_images_are_well_formed() -> None:
    vocabulary, draw = lumina(), random.Random(0)
    sizes = vocabulary.image_sizes
    assert sizes is not None
    for _ in range(10_000):
        grid = draw.choice([(2, 2), (2, 6), (6, 2), (4, 4), (8, 2), (4, 10)])
        template = image_template(vocabulary, grid)
        grammar = Grammar(vocabulary, len(template), max_remaining_tokens=400, max_images=1, images_only=True,
                          image_first=True, template=template, next_template=template)  # fmt: skip
        ids: list[int] = []
        while grammar.max_images or grammar.num_codes_remaining is not None:
            forced = grammar.forced_token
            ids.append(draw.choice(vocabulary.codes) if forced is None else forced)
            grammar.accept_token(ids[-1])
        [(_, run)] = split_modalities(ids, vocabulary)
        assert isinstance(run, CodeGrid)
        assert (run.rows, run.columns, len(run)) == (*grid, grid[0] * grid[1])
        assert ids == encode_image_codes(run, vocabulary)


SIZES = {"16x16": (2, 2), "32x16": (2, 4), "16x32": (4, 2), "32x32": (4, 4), "48x16": (2, 6)}


@pytest.mark.parametrize("num_speculative_tokens", [0, 3])
def test_images_of_different_sizes_in_a_batch_are_each_alone(model: Model, num_speculative_tokens: int) -> None:
    sampling = replace(HOT, num_speculative_tokens=num_speculative_tokens)
    options = {"modality": "image", "max_images": 1, "max_new_tokens": 40, "image": sampling}
    requests = [
        model.request(["a red", noise(seed, 40, 16)], size=size, seed=seed, **options)
        for seed, size in enumerate(SIZES)
    ]
    together = model.generate_requests(requests)
    for sample, request, size in zip(together, requests, SIZES, strict=True):
        assert sample.token_ids == model.generate_requests([request])[0].token_ids
        (image,) = sample.decoded_parts
        assert isinstance(image, PIL.Image.Image)
        assert "{}x{}".format(*image.size) == size
        plain = replace(request, image=HOT)
        assert sample.token_ids == model.generate_requests([plain])[0].token_ids


def test_prompts_keep_the_aspect_ratio_of_their_images(model: Model) -> None:
    ids = model.encode([noise(1, 64, 20), noise(2, 20, 64), noise(3, 32, 32)])
    decoded = [image.size for image in model.decode(ids) if isinstance(image, PIL.Image.Image)]
    assert decoded == [(48, 16), (16, 48), (32, 32)]


def test_partial_images_have_the_size(model: Model) -> None:
    events = list(model.stream(["a"], size="32x16", image_first=True, max_images=1, max_new_tokens=14))
    partial = [event.image.size for event in events if type(event).__name__ == "ImageProgress"]
    assert partial == [(32, 16), (32, 16)]


def test_a_folder_keeps_the_layout(model: Model, tmp_path: Path) -> None:
    save_model(tmp_path, model.components)
    loaded = calumma.load(tmp_path)
    assert loaded.vocabulary == model.vocabulary
    options = {"modality": "image", "max_images": 1, "max_new_tokens": 40, "image": HOT, "size": "32x16"}
    assert loaded.generate(["a"], **options).token_ids == model.generate(["a"], **options).token_ids


def test_sizes_that_the_model_does_not_have_are_refused(model: Model, model_parts: ModelComponents) -> None:
    config = model.image.config
    assert image_grid_of("32x16", model.vocabulary, config) == (2, 4)
    assert image_grid_of("auto", model.vocabulary, config) is None
    for size in ("33x16", "80x16", "64x64", "24x16", "big"):
        with pytest.raises(GenerationError) as caught:
            image_grid_of(size, model.vocabulary, config)
        assert str(caught.value) == (
            f"size={size!r}; expected WIDTHxHEIGHT in multiples of 16, at most 1,024 in all, with sides that differ "
            "at most 4-fold. Choose another, or auto."
        )
    with pytest.raises(GenerationError) as own:
        Model(model_parts).request(["a"], size="32x16")
    assert str(own.value) == "this model generates images of 16x16 only; expected that size, or auto. Leave size out."
    with pytest.raises(GenerationError) as grid:
        image_template(model.vocabulary, (2, 20))
    assert str(grid.value) == (
        "an image of 2 x 20 cells; expected, in cells, WIDTHxHEIGHT in multiples of 2, at most 16 in all, with sides "
        "that differ at most 4-fold. Choose another size."
    )


def test_an_open_image_of_another_layout_is_refused(model: Model, model_parts: ModelComponents) -> None:
    v = model.vocabulary
    request = model.request(["a"])
    assert v.image_sizes is not None
    image = [*encode_image_codes(CodeGrid([1, 2, 3, 4], 2, 2), v)[:-2]]
    image[5] = 9  # a code in the place of a newline
    with pytest.raises(GenerationError) as caught:
        model.engine.submit(replace(request, prompt_token_ids=(v.bos, *image)))
    assert str(caught.value) == (
        "the prompt's last image is open and has other tokens than its size; expected height, width, and a newline "
        "after each row. Leave keep_image_tokens out."
    )
    square = Model(model_parts)
    with pytest.raises(GenerationError) as grid:
        square.engine.submit(replace(square.request(["a"]), image_grid=(2, 4)))
    assert str(grid.value) == (
        "image_grid=(2, 4) of a model whose images are 2 x 2 cells; expected None. Leave the size out."
    )


AUTO = {"modality": "image", "max_images": 1, "max_new_tokens": 40}


@pytest.mark.parametrize("num_speculative_tokens", [0, 3])
@pytest.mark.parametrize("is_async", [False, True])
def test_the_model_chooses_the_size_of_auto(model: Model, num_speculative_tokens: int, is_async: bool) -> None:
    """Every size is one of the layout, in a batch the same as alone, and speculation changes nothing."""
    warm = replace(HOT, num_speculative_tokens=num_speculative_tokens)
    text = TextSampling(temperature=2.0, top_p=1.0, repetition_penalty=1.3)
    requests = [model.request(["a"], seed=seed, image=warm, text=text, **AUTO) for seed in range(24)]
    engine = model.new_engine(EngineConfig(async_scheduling=is_async))
    states = engine.generate(requests)
    sizes = model.vocabulary.image_sizes
    assert sizes is not None
    found = set()
    for state in states:
        [(_, run)] = split_modalities(state.output_token_ids, model.vocabulary)
        assert isinstance(run, CodeGrid)
        assert state.output_token_ids[: len(run) + run.rows + 4] == encode_image_codes(run, model.vocabulary)
        found.add((run.rows, run.columns))
        # Sampled sides have a probability among the heights, and among the widths of that height.
        assert state.logprobs[1] < 0
    assert found <= set(sizes.grids) and len(found) >= 3
    for state, request in zip(states[:6], requests, strict=False):
        plain = replace(request, image=HOT)
        assert model.engine.generate([plain])[0].output_token_ids == state.output_token_ids


def test_several_images_of_chosen_sizes_follow_each_other(model: Model) -> None:
    """Each size is sampled again, and guidance by earlier images reserves enough slots."""
    sampling = replace(HOT, image_guidance_scale=1.5)
    text = TextSampling(temperature=2.0, top_p=1.0)
    prompt = ["a", noise(1, 40, 16)]
    options = {"modality": "image", "max_images": 3, "max_new_tokens": 90, "image": sampling, "text": text}
    requests = [model.request(prompt, seed=seed, **options) for seed in range(6)]
    together = model.generate_requests(requests)
    assert [each.token_ids for each in together] == [model.generate_requests([r])[0].token_ids for r in requests]
    images = [part for each in together for part in each.parts]
    assert all(isinstance(image, PIL.Image.Image) for image in images)
    assert len({image.size for image in images if isinstance(image, PIL.Image.Image)}) > 2


def test_no_size_is_chosen_by_logits_of_forbidden_tokens(model: Model) -> None:
    """2,000 images of random tokens whose sides are chosen too: each has a grid of the layout."""
    sizes = model.vocabulary.image_sizes
    assert sizes is not None
    v, draw, found = model.vocabulary, random.Random(0), set()
    for _ in range(2000):
        grammar = Grammar(v, sizes.max_image_tokens - 2, max_remaining_tokens=40, max_images=1, images_only=True)
        ids = [v.begin_image]
        grammar.consume(v.begin_image)
        while grammar.num_codes_remaining is not None:
            forced = grammar.forced_token
            if forced is None:
                is_side = grammar.next_kind is TokenKind.IMAGE_SIDE
                forced = draw.choice(sorted(grammar.allowed_sides) if is_side else v.codes)
            ids.append(forced)
            grammar.accept_token(forced)
        [(_, run)] = split_modalities(ids, v)
        assert isinstance(run, CodeGrid)
        assert ids == encode_image_codes(run, v)
        found.add((run.rows, run.columns))
    assert found == set(sizes.grids)


def test_an_open_image_is_completed_in_its_size(model: Model) -> None:
    image = noise(2, 40, 16)
    complete = model.encode([image])
    kept = model.request([image], keep_image_tokens=3, max_new_tokens=20, max_images=0)
    assert complete[: len(kept.prompt_token_ids)] == list(kept.prompt_token_ids)
    assert model.vocabulary.is_image_token(kept.prompt_token_ids[-1])
    sample = model.generate_requests([kept])[0]
    (first, *_) = sample.parts
    assert isinstance(first, PIL.Image.Image)
    assert first.size == (48, 16)


def test_edits_have_the_size_of_their_image(model: Model) -> None:
    image = noise(3, 40, 16)
    mask = PIL.Image.new("L", (40, 16))
    mask.putpixel((39, 8), 255)
    sample = model.edit(image, "a", mask=mask, image=HOT)
    (edited,) = sample.decoded_parts
    assert isinstance(edited, PIL.Image.Image)
    assert edited.size == (48, 16)
    before = [id_ for id_ in sample.prompt_token_ids if id_ in model.vocabulary.codes]
    after = [id_ for id_ in sample.token_ids if id_ in model.vocabulary.codes]
    assert before[:-1] == after[:-1]
    (free,) = model.edit(image, "a", image=HOT).decoded_parts
    assert isinstance(free, PIL.Image.Image)
    assert free.size == (48, 16)
