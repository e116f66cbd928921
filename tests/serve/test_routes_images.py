"""Image generation."""

from __future__ import annotations

import base64
import io
from typing import Any

import PIL.Image
import pytest
from starlette.testclient import TestClient

from calumma.generate.model import Model
from calumma.generate.params import ImageSampling
from calumma.serve.config import ServeConfig
from calumma.serve.moderation import CONTENT_FILTERS
from tests.serve.conftest import serving
from tests.serve.test_moderation import NoWord


def generate(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/images/generations", json={"prompt": "a red circle", **body})


def test_an_image_is_the_one_that_the_model_generates(client: TestClient, model: Model) -> None:
    body = {"seed": 4, "temperature": 1.0, "guidance_scale": 2.0}
    result = generate(client, **body).json()
    rules = ImageSampling(temperature=1.0, guidance_scale=2.0)
    alone = model.generate(["a red circle"], seed=4, image=rules, modality="image", max_images=1, max_new_tokens=6)
    data = base64.b64decode(result["data"][0]["b64_json"])
    (image,) = alone.parts
    assert isinstance(image, PIL.Image.Image)
    assert PIL.Image.open(io.BytesIO(data)).convert("RGB").tobytes() == image.tobytes()
    assert (result["size"], result["data"][0]["seed"]) == ("16x16", 4)
    assert result["usage"]["output_tokens"] == 6


def test_only_the_size_of_the_model_is_supported(client: TestClient) -> None:
    for size in ("auto", "16x16", None):
        assert generate(client, size=size).status_code == 200
    rejected = generate(client, size="1024x1024")
    assert rejected.status_code == 400
    assert rejected.json()["error"]["message"] == (
        "this model generates images of 16x16 only; expected that size, or auto. Leave size out."
    )


@pytest.mark.parametrize(("requested", "count"), [(0, 0), (1, 2), (3, 4)])
def test_a_stream_has_about_the_requested_number_of_partial_images(
    client: TestClient, requested: int, count: int
) -> None:
    text = generate(client, stream=True, partial_images=requested, seed=1).text
    assert text.count("event: image_generation.partial_image") == count
    assert text.count("event: image_generation.completed") == 1


def test_a_blocked_image_is_not_sent(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoImage(NoWord):
        def passes_image(self, image: PIL.Image.Image) -> bool:
            return False

    monkeypatch.setitem(CONTENT_FILTERS, "strict", lambda: NoImage("bad"))
    with serving(model, ServeConfig(served_model_name="tiny", content_filters=("strict",))) as (client, _):
        rejected = generate(client)
        assert rejected.status_code == 400
        assert rejected.json()["error"]["message"] == (
            "a content filter of this server blocks an image; expected another prompt."
        )
        assert generate(client, prompt="bad").json()["error"]["code"] == "content_filter"
