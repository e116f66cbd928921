"""The official OpenAI client, unchanged, over a socket."""

import base64
import copy
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import PIL.Image
import pytest

from calumma.checkpoints.model_folder import ModelComponents
from calumma.checkpoints.peft_folder import write_adapter
from calumma.generate.model import Model
from calumma.generate.params import TextSampling
from calumma.serve.handler import RequestHandler
from tests.generate.test_editing import square_mask
from tests.images import png
from tests.model.test_lora import random_adapter
from tests.serve.conftest import WILD, image_part, listening, user_message
from tests.serve.test_routes_images import png_bytes

EXTRA: dict[str, Any] = {"image_temperature": 1.0}
HOT: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "extra_body": EXTRA}


@pytest.fixture(scope="module")
def client(running_server: tuple[str, RequestHandler]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running_server[0]}/v1", api_key="none", max_retries=0) as made:
        yield made


def chat(client: openai.OpenAI, *parts: Any, **more: Any) -> Any:
    body: dict[str, Any] = {"model": "tiny", "messages": user_message(*parts), "max_tokens": 30, **HOT}
    return client.chat.completions.create(**(body | more))


def pixels(url: str) -> bytes:
    data = base64.b64decode(url.partition(",")[2])
    return PIL.Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    (card,) = client.models.list()
    assert (card.id, card.owned_by) == ("tiny", "calumma")
    assert client.models.retrieve("tiny") == card


def test_adapters_are_selected_by_model_name(model_parts: ModelComponents, tmp_path: Path) -> None:
    decoder = copy.deepcopy(model_parts.decoder)
    for seed, name in enumerate(("red", "blue"), start=1):
        write_adapter(tmp_path / name, random_adapter(decoder, seed), decoder.config, tmp_path)
    folders = {name: tmp_path / name for name in ("red", "blue")}
    model = Model(replace(model_parts, decoder=decoder), adapters=folders)
    names = ("tiny", "red", "blue")
    options: dict[str, Any] = {"max_new_tokens": 12, "max_images": 0, "text": TextSampling(temperature=0)}
    expected = {
        name: "".join(model.generate(["a red"], adapter=name if name in folders else "", **options).decoded_parts)
        for name in names
    }
    assert len(set(expected.values())) == 3
    with listening(model) as (url, _, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:

        def answer(name: str) -> Any:
            more = {"max_tokens": 12, "temperature": 0, "extra_body": {"modalities": ["text"]}}
            return chat(client, "a red", model=name, **more)

        with ThreadPoolExecutor(3) as threads:
            answers = list(threads.map(answer, names))
        assert {each.model: each.choices[0].message.content for each in answers} == expected
        cards = client.models.list().data
        assert [(card.id, card.parent) for card in cards] == [("tiny", None), ("red", "tiny"), ("blue", "tiny")]
        assert client.models.retrieve("red").id == "red"
        with pytest.raises(openai.NotFoundError, match="expected 'tiny' or 'red' or 'blue', as in /v1/models"):
            answer("green")


def test_a_chat_is_answered_with_text_and_images(client: openai.OpenAI, drawing_seed: int) -> None:
    result = chat(client, "a red ", image_part(1), seed=drawing_seed)
    message = result.choices[0].message
    kinds = [part["type"] for part in message.content_parts]
    assert "image_url" in kinds and "text" in kinds
    assert len(message.images) == kinds.count("image_url")
    texts = [part["text"] for part in message.content_parts if part["type"] == "text"]
    assert message.content == "".join(texts)
    assert result.usage.total_tokens == result.usage.prompt_tokens + result.usage.completion_tokens


def test_a_stream_is_the_same_answer_as_it_grows(client: openai.OpenAI, drawing_seed: int) -> None:
    body: dict[str, Any] = {"seed": drawing_seed, "n": 2}
    complete = chat(client, "a red ", image_part(1), **body)
    texts: list[str] = ["", ""]
    images: list[list[bytes]] = [[], []]
    reasons: list[str | None] = [None, None]
    partial, usage = 0, None
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in chat(client, "a red ", image_part(1), **body):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            for image in getattr(choice.delta, "images", None) or []:
                images[choice.index].append(pixels(image["image_url"]["url"]))
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        if hasattr(chunk, "partial_image_b64"):
            assert base64.b64decode(chunk.partial_image_b64).startswith(b"\x89PNG")
            partial += 1
    assert texts == [choice.message.content for choice in complete.choices]
    assert reasons == [choice.finish_reason for choice in complete.choices]
    assert images == [
        [pixels(image["image_url"]["url"]) for image in choice.message.images] for choice in complete.choices
    ]
    assert usage == complete.usage
    drawn = sum(map(len, images))
    assert drawn > 0
    assert partial >= 2 * drawn  # two rows of codes to an image


def test_answers_are_sent_back_as_turns_of_a_longer_chat(client: openai.OpenAI) -> None:
    first = chat(client, "a red ", seed=3).choices[0].message
    turns = [*user_message("a red "), first.model_dump(), *user_message("and green?")]
    again = chat(client, messages=turns, seed=4)
    alone = chat(client, "a red ", seed=3).usage
    assert again.usage.prompt_tokens > alone.prompt_tokens + alone.completion_tokens - 2
    assert again == again.model_copy()


def test_an_answer_that_is_begun_is_gone_on_with(client: openai.OpenAI) -> None:
    cold = {"temperature": 0.0, "extra_body": {"repetition_penalty": 1.0}, "modalities": ["text"]}
    complete = chat(client, "a red ", max_tokens=12, **cold).choices[0].message.content
    half = chat(client, "a red ", max_tokens=6, **cold).choices[0].message.content
    turns = [*user_message("a red "), {"role": "assistant", "content": half}]
    rest = chat(client, messages=turns, max_tokens=6, **cold).choices[0].message.content
    assert complete.startswith(half)
    assert len(rest) > 0


def test_n_answers_have_the_seeds_that_follow(client: openai.OpenAI) -> None:
    three = chat(client, "a red ", seed=7, n=3).choices
    assert [choice.seed for choice in three] == [7, 8, 9]
    for number, choice in enumerate(three):
        alone = chat(client, "a red ", seed=7 + number).choices[0]
        assert alone.message.content == choice.message.content
    assert len({choice.message.content for choice in three}) == 3


def test_without_a_seed_answers_differ_and_say_how_to_get_them_again(client: openai.OpenAI) -> None:
    one, other = (chat(client, "a red ").choices[0] for _ in range(2))
    assert one.seed != other.seed
    again = chat(client, "a red ", seed=one.seed).choices[0]
    assert again.message.content == one.message.content


def test_a_seed_gives_the_same_answer_under_load(client: openai.OpenAI) -> None:
    def result(seed: int) -> list[Any]:
        parts = ["a red ", image_part(seed)] if seed % 2 else ["the small green "]
        return chat(client, *parts, seed=seed, max_tokens=20).choices[0].message.content_parts

    def shown(parts: list[Any]) -> list[Any]:
        return [p["text"] if p["type"] == "text" else pixels(p["image_url"]["url"]) for p in parts]

    alone = [shown(result(seed)) for seed in range(8)]
    with ThreadPoolExecutor(24) as many:
        together = list(many.map(result, list(range(8)) * 3))
    assert [shown(parts) for parts in together] == alone * 3


def test_images_are_drawn_of_a_prompt(client: openai.OpenAI) -> None:
    result = client.images.generate(
        model="tiny", prompt="a red circle", n=2, size="16x16", extra_body={**WILD, "seed": 5}
    )
    assert result.data is not None
    seen = [PIL.Image.open(io.BytesIO(base64.b64decode(d.b64_json or ""))) for d in result.data]
    assert [image.size for image in seen] == [(16, 16), (16, 16)]
    again = client.images.generate(model="tiny", prompt="a red circle", extra_body={**WILD, "seed": 6})
    assert again.data is not None
    last = PIL.Image.open(io.BytesIO(base64.b64decode(again.data[0].b64_json or "")))
    assert last.tobytes() == seen[1].tobytes()


def test_images_are_streamed_while_they_grow(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        model="tiny", prompt="a red", stream=True, partial_images=3, extra_body={"seed": 1}
    )
    result = [(event.type, getattr(event, "partial_image_index", None)) for event in stream]
    partial = [("image_generation.partial_image", index) for index in range(4)]
    assert result == [*partial, ("image_generation.completed", None)]


def test_masked_cells_of_an_image_are_edited(client: openai.OpenAI) -> None:
    result = client.images.edit(
        image=("cat.png", png(3)),
        mask=("mask.png", png_bytes(square_mask(3))),
        prompt="make it blue",
        n=2,
        extra_body={"seed": 4, "temperature": 2.0},
    )
    assert result.data is not None and [each.seed for each in result.data] == [4, 5]  # type: ignore[attr-defined]


def test_a_text_is_gone_on_with(client: openai.OpenAI) -> None:
    result = client.completions.create(model="tiny", prompt=["a red", "the"], n=2, max_tokens=9, seed=1, **HOT)
    assert [choice.index for choice in result.choices] == [0, 1, 2, 3]
    alone = client.completions.create(model="tiny", prompt="the", max_tokens=9, seed=1, **HOT)
    assert alone.choices[0].text == result.choices[2].text
    stream = client.completions.create(model="tiny", prompt="the", max_tokens=9, seed=1, stream=True, **HOT)
    assert "".join(c.text for chunk in stream for c in chunk.choices) == alone.choices[0].text


MISTAKES: list[tuple[dict[str, Any], type[openai.APIStatusError], str]] = [
    ({"model": "other"}, openai.NotFoundError, "model_not_found"),
    ({"n": 99}, openai.BadRequestError, "too_many_choices"),
    ({"temperature": 3.0}, openai.BadRequestError, "invalid_value"),
    ({"messages": []}, openai.BadRequestError, "invalid_value"),
    ({"messages": user_message()}, openai.BadRequestError, "empty_prompt"),
    ({"messages": user_message("x" * 200)}, openai.BadRequestError, "generation"),
    ({"tools": [{"type": "function"}]}, openai.BadRequestError, "invalid_value"),
    ({"messages": user_message("a", role="assistant")}, openai.BadRequestError, "document"),
]


@pytest.mark.parametrize(("more", "kind", "code"), MISTAKES)
def test_mistakes_are_errors_of_the_client_with_a_code(
    client: openai.OpenAI, more: dict[str, Any], kind: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        chat(client, "a", **more)
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"


def test_the_most_likely_tokens_are_returned(client: openai.OpenAI) -> None:
    choice = chat(client, "a red ", seed=1, logprobs=True, top_logprobs=3, modalities=["text"])
    content = choice.choices[0].logprobs.content
    assert content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= token.top_logprobs[0].logprob <= 0
    result = client.completions.create(model="tiny", prompt="the", max_tokens=9, seed=1, logprobs=3, **HOT)
    logprobs = result.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens and logprobs.top_logprobs
    assert logprobs.token_logprobs is not None
    for name, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert 3 <= len(top) <= 4 and top[name] == value
