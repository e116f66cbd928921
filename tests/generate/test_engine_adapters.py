"""Requests with different adapters in one batch."""

import copy
from dataclasses import replace

import pytest

from calumma.errors import GenerationError
from calumma.generate.engine import Engine
from calumma.generate.params import EngineConfig, ImageSampling, Request, TextSampling
from calumma.model.decoder import Decoder
from calumma.model.lora import Adapter, AdapterBatch
from calumma.tokens.text import TextTokenizer
from tests.model.test_lora import merged, random_adapter

CODES = 4


@pytest.fixture
def adapters(decoder: Decoder) -> dict[str, Adapter]:
    return {"one": random_adapter(decoder, 1), "two": random_adapter(decoder, 2, tables=False)}


@pytest.fixture
def engine(decoder: Decoder, text_tokenizer: TextTokenizer, adapters: dict[str, Adapter]) -> Engine:
    adapted = copy.deepcopy(decoder)
    return Engine(adapted, text_tokenizer.vocabulary, CODES, adapters=AdapterBatch(adapted, adapters))


@pytest.fixture
def requests(text_tokenizer: TextTokenizer) -> list[Request]:
    """Return text and guided images after one prompt, for both adapters and the model itself."""
    v = text_tokenizer.vocabulary
    words = text_tokenizer.encode("a large red circle on a blue ground, and the small green cross")
    prompt = (0, *words, v.end_turn)
    text = TextSampling(temperature=1.0, top_p=1.0)
    base = [
        Request(prompt_token_ids=prompt, max_new_tokens=12, max_images=0, text=text),
        Request(prompt_token_ids=prompt, max_new_tokens=24, image_first=True, text=text,
                image=ImageSampling(guidance_scale=3.0), seed=5),
    ]  # fmt: skip
    return [replace(request, adapter=name) for request in base for name in ("", "one", "two")]


def run(engine: Engine, batch: list[Request]) -> list[list[int]]:
    return [state.output_token_ids for state in engine.generate(batch)]


def test_a_batch_of_adapters_is_each_alone(engine: Engine, requests: list[Request]) -> None:
    together = run(engine, requests)
    assert len({tuple(tokens) for tokens in together}) == len(requests)
    assert together == [run(engine, [request])[0] for request in requests]


def test_each_adapter_generates_what_its_merged_model_does(
    engine: Engine, decoder: Decoder, adapters: dict[str, Adapter], requests: list[Request]
) -> None:
    together = run(engine, requests)
    for name in ("", "one", "two"):
        plain = merged(decoder, adapters[name]) if name else decoder
        alone = Engine(plain, engine.vocabulary, CODES)
        own = [index for index, request in enumerate(requests) if request.adapter == name]
        expected = run(alone, [replace(requests[index], adapter="") for index in own])
        assert [together[index] for index in own] == expected


def test_prefixes_are_not_shared_between_adapters(engine: Engine, requests: list[Request]) -> None:
    first = run(engine, requests[:1])
    assert run(engine, requests[1:2]) == run(engine, requests)[1:2]
    assert run(engine, requests[:1]) == first


def test_graphs_and_compilation_with_adapters_are_refused(engine: Engine, decoder: Decoder) -> None:
    with pytest.raises(GenerationError) as caught:
        Engine(decoder, engine.vocabulary, CODES, config=EngineConfig(compile=True), adapters=engine._adapters)
    assert str(caught.value) == (
        "cuda_graphs=None and compile=True with adapters; expected neither. Leave them out, or merge one adapter "
        "into the model with adapter=."
    )


def test_an_unknown_adapter_is_refused(engine: Engine, requests: list[Request]) -> None:
    with pytest.raises(GenerationError, match="adapter 'three' is not loaded"):
        engine.submit(replace(requests[0], adapter="three"))
