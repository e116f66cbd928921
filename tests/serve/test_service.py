"""What all endpoints share."""

from __future__ import annotations

import base64
import io

import PIL.Image
import pytest
from starlette.testclient import TestClient

from calumma.generate.model import Model
from calumma.serve.answers import TokenCounts
from calumma.serve.config import ServeConfig
from calumma.serve.refusals import Refusal
from calumma.serve.service import Service, base64_of, data_url
from tests.pictures import noise
from tests.serve.conftest import serving


def test_ids_are_counted_by_what_they_are(service: Service, model: Model) -> None:
    ids = model.encode(["ab", noise(1), "c"])
    text = 1 + len(model.text.encode("ab")) + len(model.text.encode("c"))
    assert service.counts(ids) == TokenCounts(text_tokens=text, image_tokens=6)
    assert service.size == "16x16"
    assert service.require_ids([0, 5]) == [0, 5]
    size = model.vocabulary.size
    with pytest.raises(Refusal) as caught:
        service.require_ids([size])
    assert str(caught.value) == f"the id {size} is none of this model's; wanted 0 to {size - 1}."


def test_another_model_and_too_many_answers_are_refused(service: Service) -> None:
    service.require_model(None)
    service.require_model("tiny")
    with pytest.raises(Refusal) as caught:
        service.require_model("gpt")
    assert str(caught.value) == (
        "no model of that name is served here; wanted 'tiny'. /v1/models names it."
    )
    with pytest.raises(Refusal) as many:
        service.require_choices(9)
    assert str(many.value) == "9 answers are wanted; wanted 1 to 8. Ask again for the rest."


def description(client: TestClient, **more: object) -> str | None:
    body = {"prompt": "a red circle", "seed": 1, **more}
    data = client.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
    picture.load()
    text: dict[str, str] = picture.text  # type: ignore[attr-defined]
    assert text["Model"] == "tiny"
    return text.get("Description")


def test_pictures_hold_the_prompt_where_the_client_or_the_operator_wants_it(
    client: TestClient, model: Model
) -> None:
    assert description(client) is None
    assert description(client, prompt_in_picture=True) == "a red circle"
    with serving(model, ServeConfig(name="tiny", prompts_in_pictures=True)) as (other, _):
        assert description(other) == "a red circle"


def test_pictures_travel_in_base64() -> None:
    assert base64_of(b"ab") == "YWI="
    assert data_url(b"ab") == "data:image/png;base64,YWI="
