"""What all endpoints share."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from c2pa import C2paError
from calumma.serve.answers import TokenCounts
from starlette.testclient import TestClient

from calumma.generate.model import Model
from calumma.serve.api_errors import APIError
from calumma.serve.config import ServeConfig
from calumma.serve.handler import RequestHandler
from calumma.serve.provenance.image_metadata import TRAINED_ALGORITHMIC_MEDIA, ImageMetadata
from tests.images import noise
from tests.serve.chain import Authority, read
from tests.serve.conftest import WILD, image_part, said, serving


def test_ids_are_counted_by_what_they_are(handler: RequestHandler, model: Model) -> None:
    ids = model.encode(["ab", noise(1), "c"])
    text = 1 + len(model.text.encode("ab")) + len(model.text.encode("c"))
    assert handler.counts(ids) == TokenCounts(text_tokens=text, image_tokens=6)
    assert handler.size == "16x16"
    assert handler.require_ids([0, 5]) == [0, 5]
    size = model.vocabulary.size
    with pytest.raises(APIError) as caught:
        handler.require_ids([size])
    assert str(caught.value) == f"the id {size} is none of this model's; expected 0 to {size - 1}."


def test_another_model_and_too_many_answers_are_refused(handler: RequestHandler) -> None:
    handler.require_model(None)
    handler.require_model("tiny")
    with pytest.raises(APIError) as caught:
        handler.require_model("gpt")
    assert str(caught.value) == (
        "no model of that name is served here; expected 'tiny'. /v1/models names it."
    )
    with pytest.raises(APIError) as many:
        handler.require_choices(9)
    assert str(many.value) == "9 answers are expected; expected 1 to 8. Ask again for the rest."


def description(client: TestClient, **more: object) -> str | None:
    body = {"prompt": "a red circle", "seed": 1, **more}
    data = client.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
    image = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    text: dict[str, str] = image.text  # type: ignore[attr-defined]
    assert text["Model"] == "tiny"
    return text.get("Description")


def test_images_hold_the_prompt_where_the_client_or_the_operator_wants_it(
    client: TestClient, model: Model
) -> None:
    assert description(client) is None
    assert description(client, embed_prompt_metadata=True) == "a red circle"
    with serving(model, ServeConfig(served_model_name="tiny", embed_prompt_metadata=True)) as (
        other,
        _,
    ):
        assert description(other) == "a red circle"


def test_images_travel_in_base64() -> None:
    assert base64_of(b"ab") == "YWI="


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def signing(
    model: Model, authority: Authority, tmp_path: Path
) -> Iterator[tuple[TestClient, RequestHandler]]:
    config = ServeConfig(served_model_name="tiny", c2pa=authority.write(tmp_path))
    with serving(model, config) as made:
        yield made


DRAW = {"prompt": "a red circle", "seed": 1}


def drawn(client: TestClient, **more: object) -> bytes:
    result = client.post("/v1/images/generations", json={**DRAW, **more}).json()
    return base64.b64decode(result["data"][0]["b64_json"])


def test_images_that_go_out_are_signed_where_the_operator_wants_it(
    client: TestClient, signing: tuple[TestClient, RequestHandler], authority: Authority
) -> None:
    plain, signed = drawn(client), drawn(signing[0])
    seen = read(signed, authority)
    assert (seen.state, seen.wrong) == ("Trusted", [])
    before, after = (PIL.Image.open(io.BytesIO(file)) for file in (plain, signed))
    assert before.tobytes() == after.tobytes()
    result = after.text  # type: ignore[attr-defined]
    assert set(result) == set(before.text)  # type: ignore[attr-defined]
    assert seen.action == {
        "action": "c2pa.created",
        "when": result["Creation Time"],
        "softwareAgent": {"name": "tiny"},
        "digitalSourceType": TRAINED_ALGORITHMIC_MEDIA,
    }
    with_prompt = read(drawn(signing[0], embed_prompt_metadata=True), authority)
    assert with_prompt.action["description"] == "a red circle"


def test_a_signed_image_can_be_sent_back(
    signing: tuple[TestClient, RequestHandler], authority: Authority, drawing_seed: int
) -> None:
    def asked(messages: list[dict[str, object]]) -> dict[str, Any]:
        body = {"messages": messages, "seed": drawing_seed, "max_tokens": 30, **WILD}
        response = signing[0].post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    turns = said("a red ", image_part(1))
    message = asked(turns)["choices"][0]["message"]
    for image in message["images"]:
        url: str = image["image_url"]["url"]
        assert read(base64.b64decode(url.partition(",")[2]), authority).state == "Trusted"
    again = asked([*turns, {"role": "assistant", "content": message["content_parts"]}, *said("b")])
    assert again["usage"]["prompt_tokens_details"]["image_tokens"] == 6 * (
        1 + len(message["images"])
    )


def test_a_image_that_grows_is_not_signed_and_the_finished_one_is(
    signing: tuple[TestClient, RequestHandler], authority: Authority
) -> None:
    body = {**DRAW, "stream": True, "partial_images": 2}
    text = signing[0].post("/v1/images/generations", json=body).text
    result = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    *partial, whole = [base64.b64decode(one["b64_json"]) for one in result]
    assert partial
    assert all(b"caBX" not in file for file in partial)
    assert read(whole, authority).state == "Trusted"


def test_images_are_signed_in_the_threads_of_their_answers(
    signing: tuple[TestClient, RequestHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, handler = signing
    signer, names = handler.signer, set()
    assert signer is not None
    sign = signer.sign

    def watched(png: bytes, origin: ImageMetadata) -> bytes:
        names.add(threading.current_thread().name.partition("_")[0])
        return sign(png, origin)

    monkeypatch.setattr(signer, "sign", watched)
    drawn(client)
    assert names == {"calumma-answer"}


def test_a_image_that_cannot_be_signed_does_not_go_out(
    signing: tuple[TestClient, RequestHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, handler = signing

    def fails(png: bytes, origin: ImageMetadata) -> bytes:
        raise C2paError("Signature: the certificate was not valid at time of signing")

    monkeypatch.setattr(handler.signer, "signed", fails)
    refused = client.post("/v1/images/generations", json=DRAW)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "cannot_sign")
    streamed = client.post("/v1/images/generations", json={**DRAW, "stream": True})
    assert '"code": "cannot_sign"' in streamed.text
    assert "image_generation.completed" not in streamed.text
    words = {"messages": said("a"), "max_tokens": 2, "modalities": ["text"]}
    assert client.post("/v1/chat/completions", json=words).status_code == 200
    assert handler.num_in_flight == 0
