"""Chats, full and as they grow, against what the model itself says."""

import base64
import io
import json
from dataclasses import replace
from typing import Any

import PIL.Image
import pytest
from starlette.testclient import TestClient
from tokenizers import AddedToken, Tokenizer

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate.model import Model
from calumma.model.decoder import Decoder
from calumma.tokens.folder import Tokenizers
from calumma.tokens.text import TextTokenizer
from tests.images import noise
from tests.serve.conftest import ALONE, WILD, image_part, serving, user_message


def chat(client: TestClient, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    body = {"messages": messages, "max_tokens": 30, **WILD, **more}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def opened(url: str) -> PIL.Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return PIL.Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def parts_reported(message: dict[str, Any]) -> list[str | bytes]:
    return [
        part["text"] if part["type"] == "text" else opened(part["image_url"]["url"]).tobytes()
        for part in message["content_parts"]
    ]


def as_bytes(parts: list[str | PIL.Image.Image]) -> list[str | bytes]:
    return [part if isinstance(part, str) else part.tobytes() for part in parts if part]


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_what_the_model_says_and_draws_in_order(client: TestClient, model: Model, seed: int) -> None:
    alone = model.generate(["a red ", noise(1)], seed=seed, **ALONE)
    result = chat(client, user_message("a red ", image_part(1)), seed=seed)
    (choice,) = result["choices"]
    message = choice["message"]
    assert parts_reported(message) == as_bytes(alone.parts)
    assert message["content"] == "".join(p for p in alone.parts if isinstance(p, str))
    assert [part["type"] for part in message["images"]] == ["image_url"] * len(message["images"])
    assert choice["finish_reason"] == alone.finish_reason
    assert choice["seed"] == seed
    usage = result["usage"]
    assert usage["completion_tokens"] == len(alone.token_ids)
    assert usage["prompt_tokens_details"] == {
        "text_tokens": alone.usage.prompt.text_tokens,
        "image_tokens": alone.usage.prompt.image_tokens,
    }
    assert usage["completion_tokens_details"] == {
        "text_tokens": alone.usage.completion.text_tokens,
        "image_tokens": alone.usage.completion.image_tokens,
    }
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def events_of(client: TestClient, **body: Any) -> list[tuple[str, Any]]:
    """Return the events of a stream, each with its name."""
    text = client.post("/v1/chat/completions", json={"stream": True, **body}).text
    result = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        data = fields["data"]
        result.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return result


def test_a_stream_names_partial_images_and_tokens_and_ends(
    client: TestClient, model: Model, drawing_seed: int
) -> None:
    alone = model.generate(["a red ", noise(1)], seed=drawing_seed, **ALONE)
    result = events_of(
        client,
        messages=user_message("a red ", image_part(1)),
        seed=drawing_seed,
        max_tokens=30,
        return_token_ids=True,
        stream_options={"include_usage": True},
        **WILD,
    )
    assert result[-1] == ("", "[DONE]")
    chunks = [chunk for _, chunk in result[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["usage"]["completion_tokens"] == len(alone.token_ids)
    tokens = [chunk for name, chunk in result if name == "tokens"]
    assert tokens[0]["prompt_token_ids"] == alone.prompt_token_ids
    assert [id_ for chunk in tokens for id_ in chunk["token_ids"]] == alone.token_ids
    partial = [chunk for name, chunk in result if name == "partial_image"]
    assert [chunk["partial_image_index"] for chunk in partial[:2]] == [0, 1]
    assert opened(f"data:image/png;base64,{partial[0]['partial_image_b64']}").size == (16, 16)
    # A client that knows no names reads each of them as a chunk without news.
    assert {str(chunk["choices"][0]["delta"]) for chunk in [*partial, *tokens]} == {"{}"}


def test_partial_images_can_be_left_out(client: TestClient, drawing_seed: int) -> None:
    result = events_of(
        client,
        messages=user_message("a red ", image_part(1)),
        seed=drawing_seed,
        max_tokens=30,
        stream_options={"include_partial_images": False},
        **WILD,
    )
    assert {name for name, _ in result} == {""}
    drawn = [c["choices"][0]["delta"].get("images") for _, c in result[:-1]]
    assert any(drawn)


@pytest.mark.parametrize(("modalities", "kinds"), [(["text"], {"text"}), (["image"], {"image_url"})])
def test_an_answer_holds_what_was_asked_for(client: TestClient, modalities: list[str], kinds: set[str]) -> None:
    for seed in range(3):
        result = chat(client, user_message("a red"), modalities=modalities, seed=seed)
        parts = result["choices"][0]["message"]["content_parts"]
        assert {part["type"] for part in parts} == kinds


def test_an_answer_ends_before_a_stop_string(client: TestClient) -> None:
    full = chat(client, user_message("a red "), seed=1, modalities=["text"])
    text = full["choices"][0]["message"]["content"]
    word = text[5:8]
    result = chat(client, user_message("a red "), seed=1, modalities=["text"], stop=[word])
    choice = result["choices"][0]
    assert choice["message"]["content"] == text[: text.index(word)]
    assert choice["finish_reason"] == "stop"
    assert result["usage"]["completion_tokens"] < full["usage"]["completion_tokens"]


def test_logprobs_are_those_of_the_text(client: TestClient, model: Model) -> None:
    alone = model.generate(["a red "], seed=2, **ALONE)
    result = chat(client, user_message("a red "), seed=2, logprobs=True)["choices"][0]["logprobs"]
    text = model.vocabulary.text
    expected = [p for i, p in zip(alone.token_ids, alone.logprobs, strict=True) if i in text]
    assert [token["logprob"] for token in result["content"]] == expected
    assert b"".join(bytes(token["bytes"]) for token in result["content"]).decode(errors="replace") == "".join(
        part for part in alone.parts if isinstance(part, str)
    )


def test_token_logprobs_cover_the_image_tokens(client: TestClient, model: Model, drawing_seed: int) -> None:
    alone = model.generate(["a red ", noise(1)], seed=drawing_seed, **ALONE)
    fields = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True, "seed": drawing_seed}
    choice = chat(client, user_message("a red ", image_part(1)), **fields)["choices"][0]
    assert choice["token_ids"] == alone.token_ids
    assert choice["token_logprobs"] == alone.logprobs
    assert any(id_ in model.vocabulary.codes for id_ in choice["token_ids"])
    for id_, logprob, best in zip(*(choice[n] for n in TOKEN_FIELDS), strict=True):
        assert 1 <= len(best) <= 2
        assert best[0][1] >= logprob
        assert all(logprob == other for i, other in best if i == id_)
    streamed = events_of(client, messages=user_message("a red ", image_part(1)), max_tokens=30, **WILD, **fields)
    tokens = [chunk for name, chunk in streamed if name == "tokens" and chunk["token_ids"]]
    for name in TOKEN_FIELDS:
        assert [item for chunk in tokens for item in chunk[name]] == choice[name]


TOKEN_FIELDS = ("token_ids", "token_logprobs", "top_token_logprobs")
ADDED = ["<my task>", "<任务>", "任务", *(f"<é {n}>" for n in range(60))]


@pytest.fixture(scope="module")
def model_with_added_tokens(model: Model) -> Model:
    library = Tokenizer.from_str(model.text.tokenizer.to_str())
    library.add_tokens([AddedToken(text, special=True) for text in ADDED])
    text = TextTokenizer(library)
    decoder = Decoder(replace(model.decoder.config, vocabulary_size=text.vocabulary.size))
    decoder.init_weights(0)
    return Model(ModelComponents(decoder, Tokenizers(text, model.image)))


def test_added_tokens_are_streamed_as_in_the_complete_answer(model_with_added_tokens: Model) -> None:
    ids = model_with_added_tokens.text.added_tokens
    task = {"type": "special_token", "text": "<my task>"}
    body = {"messages": user_message("go ", task), "modalities": ["text"], "logprobs": True}
    body |= {"temperature": 2.0, "top_p": 1.0, "max_tokens": 60, "seed": 0, "return_token_ids": True}
    with serving(model_with_added_tokens) as (client, _):
        (choice,) = (result := chat(client, body.pop("messages"), **body))["choices"]
        assert ids["<my task>"] in result["prompt_token_ids"]
        assert set(choice["token_ids"]) & set(ids.values())
        text = choice["message"]["content"]
        assert text == model_with_added_tokens.text.decode(
            [id_ for id_ in choice["token_ids"] if id_ in model_with_added_tokens.vocabulary.text]
        )
        assert any(name in text for name in ADDED)
        spelled = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
        assert spelled.decode(errors="replace") == text

        del body["logprobs"]
        request = {"messages": user_message("go ", task), "stream": True, **WILD, **body}
        lines = client.post("/v1/chat/completions", json=request).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        deltas = [c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]]
        assert "".join(deltas) == text

        prompt = {"prompt": [{"type": "text", "text": "<my task>"}, task]}
        described = client.post("/tokenize", json=prompt).json()
        assert described["tokens"].count(ids["<my task>"]) == 1
        assert described["prompt"] == "<my task><my task>"
        named = {"type": "special_token", "text": "<eoss>"}
        refused = client.post("/tokenize", json={"prompt": [named]})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["message"].startswith("a special_token part: '<eoss>' is not an added token; expected one of: ")
        assert error["param"] == "prompt"
