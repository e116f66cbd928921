"""Generated images in responses: prompts in their metadata, and C2PA signatures."""

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
from starlette.testclient import TestClient

from calumma.generate.model import Model
from calumma.serve.config import ServeConfig
from calumma.serve.handler import RequestHandler
from calumma.serve.provenance.image_metadata import TRAINED_ALGORITHMIC_MEDIA, ImageMetadata
from tests.serve.chain import Authority, read
from tests.serve.conftest import WILD, image_part, serving, user_message


def description(client: TestClient, **more: object) -> str | None:
    body = {"prompt": "a red circle", "seed": 1, **more}
    data = client.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
    image = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    text: dict[str, str] = image.text  # type: ignore[attr-defined]
    assert text["Model"] == "tiny"
    return text.get("Description")


def test_images_contain_the_prompt_if_the_client_or_the_operator_requests_it(client: TestClient, model: Model) -> None:
    assert description(client) is None
    assert description(client, embed_prompt_metadata=True) == "a red circle"
    with serving(model, ServeConfig(served_model_name="tiny", embed_prompt_metadata=True)) as (other, _):
        assert description(other) == "a red circle"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def signing(model: Model, authority: Authority, tmp_path: Path) -> Iterator[tuple[TestClient, RequestHandler]]:
    config = ServeConfig(served_model_name="tiny", c2pa=authority.write(tmp_path))
    with serving(model, config) as made:
        yield made


DRAW = {"prompt": "a red circle", "seed": 1}


def generate(client: TestClient, **more: object) -> bytes:
    result = client.post("/v1/images/generations", json={**DRAW, **more}).json()
    return base64.b64decode(result["data"][0]["b64_json"])


def test_generated_images_are_signed_if_the_operator_requests_it(
    client: TestClient, signing: tuple[TestClient, RequestHandler], authority: Authority
) -> None:
    plain, signed = generate(client), generate(signing[0])
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
    with_prompt = read(generate(signing[0], embed_prompt_metadata=True), authority)
    assert with_prompt.action["description"] == "a red circle"


def test_a_signed_image_can_be_sent_back(
    signing: tuple[TestClient, RequestHandler], authority: Authority, drawing_seed: int
) -> None:
    def chat(messages: list[dict[str, object]]) -> dict[str, Any]:
        body = {"messages": messages, "seed": drawing_seed, "max_tokens": 30, **WILD}
        response = signing[0].post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    turns = user_message("a red ", image_part(1))
    message = chat(turns)["choices"][0]["message"]
    for image in message["images"]:
        url: str = image["image_url"]["url"]
        assert read(base64.b64decode(url.partition(",")[2]), authority).state == "Trusted"
    again = chat([*turns, {"role": "assistant", "content": message["content_parts"]}, *user_message("b")])
    assert again["usage"]["prompt_tokens_details"]["image_tokens"] == 6 * (1 + len(message["images"]))


def test_partial_images_are_not_signed_and_finished_ones_are(
    signing: tuple[TestClient, RequestHandler], authority: Authority
) -> None:
    body = {**DRAW, "stream": True, "partial_images": 2}
    text = signing[0].post("/v1/images/generations", json=body).text
    result = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    *partial, finished = [base64.b64decode(one["b64_json"]) for one in result]
    assert partial
    assert all(b"caBX" not in file for file in partial)
    assert read(finished, authority).state == "Trusted"


def test_images_are_signed_in_the_executor(
    signing: tuple[TestClient, RequestHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, handler = signing
    signer, names = handler.signer, set()
    assert signer is not None
    sign = signer.sign

    def record(png: bytes, metadata: ImageMetadata) -> bytes:
        names.add(threading.current_thread().name.partition("_")[0])
        return sign(png, metadata)

    monkeypatch.setattr(signer, "sign", record)
    generate(client)
    assert names == {"calumma-output"}


def test_an_image_that_cannot_be_signed_is_not_sent(
    signing: tuple[TestClient, RequestHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, handler = signing

    def fail(png: bytes, metadata: ImageMetadata) -> bytes:
        raise C2paError("Signature: the certificate was not valid at time of signing")

    monkeypatch.setattr(handler.signer, "try_sign", fail)
    rejected = client.post("/v1/images/generations", json=DRAW)
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "cannot_sign")
    streamed = client.post("/v1/images/generations", json={**DRAW, "stream": True})
    assert '"code": "cannot_sign"' in streamed.text
    assert "image_generation.completed" not in streamed.text
    text_only = {"messages": user_message("a"), "max_tokens": 2, "modalities": ["text"]}
    assert client.post("/v1/chat/completions", json=text_only).status_code == 200
    assert handler.num_in_flight == 0
