"""Prompt encoder: token ids of messages, and rejected prompts."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from calumma.documents.document import Document, Image, Text, Turn
from calumma.errors import CalummaError
from calumma.evaluate.context import EvalConfig
from calumma.evaluate.interleaved import generate_interleaved, last_exchange
from calumma.generate.model import Model
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeConfig, ServeLimits
from calumma.serve.images.decoder_pool import ImageDecoderPool
from calumma.serve.prompt_encoder import Prompt, PromptEncoder, chat_prompt, completion_prompt, decode_data_url
from calumma.serve.protocol import ChatMessage
from calumma.shards.encode import DocumentEncoder
from tests.images import noise, png
from tests.serve.conftest import image_part, url_of
from tests.serve.test_moderation import NoWord


@pytest.fixture(scope="module")
def pool(model: Model) -> Iterator[ImageDecoderPool]:
    made = ImageDecoderPool(model.image.config.resolution, ServeLimits())
    yield made
    made.close()


@pytest.fixture
def encoder(model: Model, pool: ImageDecoderPool) -> PromptEncoder:
    limits = ServeLimits(max_images=2)
    return PromptEncoder(model, pool, ServeConfig(served_model_name="tiny", limits=limits))


def message(role: str, content: Any, **more: Any) -> ChatMessage:
    return ChatMessage.model_validate({"role": role, "content": content, **more})


def chat(*parts: Any) -> Prompt:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return chat_prompt([message("user", content)])


def error_of(encoder: PromptEncoder, prompt: Prompt) -> str:
    with pytest.raises((APIError, CalummaError)) as caught:
        encoder.encode(prompt)
    return str(caught.value)


def test_one_message_is_the_prompt_of_the_model(encoder: PromptEncoder, model: Model) -> None:
    wide = {"type": "image_url", "image_url": {"url": url_of(png(1, 40, 20))}}
    expected = model.request(["what is ", noise(1, 40, 20), "?"]).prompt_token_ids
    assert tuple(encoder.encode(chat("what is ", wide, "?"))) == expected


def test_a_completion_is_the_prompt_without_a_turn(encoder: PromptEncoder, model: Model) -> None:
    wide = {"type": "image_url", "image_url": {"url": url_of(png(1, 40, 20))}}
    prompt = replace(chat("what is ", wide), is_chat=False)
    expected = model.request(["what is ", noise(1, 40, 20)], add_generation_prompt=False).prompt_token_ids
    assert tuple(encoder.encode(prompt)) == expected
    assert encoder.encode(completion_prompt("")) == [model.vocabulary.bos]


def test_turns_follow_each_other_as_in_documents(encoder: PromptEncoder, model: Model) -> None:
    v, encode = model.vocabulary, model.text.encode
    prompt = chat_prompt(
        [
            message("developer", "be brief"),
            message("user", "a"),
            message("assistant", "lost", content_parts=[{"type": "text", "text": "b"}]),
            message("user", [{"type": "text", "text": "c"}]),
        ]
    )
    expected = [v.bos, *encode("be brief"), *encode("a"), v.end_turn]
    assert encoder.encode(prompt) == [*expected, *encode("b"), v.eos, *encode("c"), v.end_turn]
    assert prompt.texts == ["be brief", "a", "b", "c"]


def test_an_empty_prompt_is_rejected() -> None:
    for content in (None, "", [], [{"type": "text", "text": ""}]):
        with pytest.raises(APIError) as caught:
            chat_prompt([message("user", content)])
        assert str(caught.value) == ("the messages have no text and no image; expected at least one. Add a prompt.")


def test_a_prompt_that_cannot_fit_is_rejected_before_it_is_encoded(encoder: PromptEncoder) -> None:
    assert error_of(encoder, chat(*[image_part(1)] * 3)) == (
        "the prompt has 3 images; expected at most 2. Remove some."
    )
    long = encoder.max_bytes + 1
    assert error_of(encoder, chat("x" * long)) == (
        f"the prompt has {long:,} bytes of text and 0 images; expected at most 128 tokens, the "
        "context length of this model. Shorten it."
    )


def test_a_blocked_prompt_is_rejected(model: Model, pool: ImageDecoderPool) -> None:
    config = ServeConfig(served_model_name="tiny")
    strict = PromptEncoder(model, pool, config, [NoWord("bad")])
    strict.encode(chat("good", image_part(1)))
    against = "a content filter of this server blocks the prompt; expected another one. Rephrase it."
    assert error_of(strict, chat("good", "bad")) == against
    NoWord.passes_image, kept = lambda self, image: False, NoWord.passes_image  # type: ignore[method-assign]
    try:
        assert error_of(strict, chat("good", image_part(1))) == against
    finally:
        NoWord.passes_image = kept  # type: ignore[method-assign]


def test_remote_images_are_rejected_by_default(encoder: PromptEncoder) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert error_of(encoder, chat(part)).startswith("the host of an image URL is not allowed")


def test_a_data_url_contains_its_image() -> None:
    data = png(1)
    text = base64.b64encode(data).decode()
    assert decode_data_url(f"data:image/png;base64,{text}", "p") == data
    assert decode_data_url(f"DATA:image/PNG;charset=x;base64,{text.replace('+', '%2B')}", "p") == data


@pytest.mark.parametrize("url", ["data:,x", "data:image/png,x", "data:text/plain;base64,aa", "data:"])
def test_other_data_urls_are_rejected(url: str) -> None:
    with pytest.raises(APIError) as caught:
        decode_data_url(url, "image 2")
    assert str(caught.value) == (
        "image 2: its URL is not an image in base64; expected data:image/png;base64,... Encode the image this way."
    )


def test_invalid_base64_is_rejected() -> None:
    with pytest.raises(APIError) as caught:
        decode_data_url("data:image/png;base64,a", "image 2")
    assert str(caught.value) == (
        "image 2: its base64 is invalid; expected only letters, digits, +, / and =. Encode it again."
    )


def test_server_library_evaluator_and_shards_encode_a_conversation_alike(encoder: PromptEncoder, model: Model) -> None:
    data = png(1, 40, 20)
    turns = (
        Turn("user", (Text("a"), Image(data=data))),
        Turn("assistant", (Text("b"), Image(data=data))),
        Turn("user", (Text("c"),)),
    )
    document = Document(id="1", messages=(*turns, Turn("assistant", (Text("d"),))))
    conversation = last_exchange(document)
    assert conversation is not None
    wide = {"type": "image_url", "image_url": {"url": url_of(data)}}
    messages = [
        message("user", [{"type": "text", "text": "a"}, wide]),
        message("assistant", [{"type": "text", "text": "b"}, wide]),
        message("user", "c"),
    ]
    ids = model.encode_chat(turns)
    assert encoder.encode(chat_prompt(messages)) == ids
    assert generate_interleaved(model, [conversation], EvalConfig())[0].prompt_token_ids == ids
    [sequence] = DocumentEncoder(model.components.tokenizers).encode([document])
    assert sequence.token_ids[: len(ids)] == ids
