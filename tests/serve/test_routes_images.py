"""Image generation."""

import base64
import io
from typing import Any

import PIL.Image
import pytest
from starlette.testclient import TestClient

from calumma.checkpoints.model_folder import ModelComponents
from calumma.generate.model import Model
from calumma.generate.params import ImageSampling
from calumma.serve.config import ServeConfig
from calumma.serve.moderation import CONTENT_FILTERS
from tests.generate.test_editing import square_mask
from tests.generate.test_image_sizes import sized_model
from tests.images import noise, png
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


def test_images_have_the_requested_size(model_parts: ModelComponents) -> None:
    with serving(sized_model(model_parts)) as (client, _):
        result = generate(client, size="32x16", seed=3).json()
        image = PIL.Image.open(io.BytesIO(base64.b64decode(result["data"][0]["b64_json"])))
        assert (result["size"], image.size) == ("32x16", (32, 16))
        assert result["usage"]["output_tokens"] == 14
        text = generate(client, size="16x32", stream=True, partial_images=1).text
        assert text.count('"size":"16x32"') + text.count('"size": "16x32"') == 3
        rejected = generate(client, size="80x16").json()["error"]
        assert (rejected["code"], rejected["message"]) == (
            "invalid_size",
            "size='80x16'; expected WIDTHxHEIGHT in multiples of 16, at most 1,024 in all, with sides that differ at "
            "most 4-fold. Choose another, or auto.",
        )
        chosen = {generate(client, seed=seed, temperature=2.0).json()["size"] for seed in range(6)}
        card = client.get("/v1/models").json()["data"][0]
        assert len(chosen) > 1 and chosen <= set(card["image_sizes"])
        assert card["image_sizes"] == ["64x16", "48x16", "32x16", "32x32", "16x32", "16x48", "16x64"]


def test_edits_have_the_size_of_the_image(model_parts: ModelComponents) -> None:
    with serving(sized_model(model_parts)) as (client, _):
        mask = PIL.Image.new("L", (40, 16))
        mask.putpixel((39, 8), 255)
        for files in ({}, {"mask": ("mask.png", png_bytes(mask), "image/png")}):
            files["image"] = ("cat.png", png(3, 40, 16), "image/png")
            result = client.post("/v1/images/edits", data={"prompt": "blue"}, files=files).json()
            assert result["size"] == "48x16"
        other = {"prompt": "blue", "size": "32x32"}
        rejected = client.post("/v1/images/edits", data=other, files=files).json()["error"]
        assert (rejected["code"], rejected["message"]) == (
            "invalid_size",
            "size is not that of the edited image; expected auto with a mask. Leave it out.",
        )


def test_a_chat_takes_a_size_and_prompts_keep_their_aspect(model_parts: ModelComponents) -> None:
    model = sized_model(model_parts)
    url = "data:image/png;base64," + base64.b64encode(png(3, 40, 16)).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "a"}]
    body = {"messages": [{"role": "user", "content": content}], "modalities": ["image"], "seed": 2}
    with serving(model) as (client, _):
        answer = client.post("/v1/chat/completions", json={**body, "size": "16x48", "return_token_ids": True}).json()
        [image] = answer["choices"][0]["message"]["images"]
        data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        assert PIL.Image.open(io.BytesIO(data)).size == (16, 48)
        assert answer["prompt_token_ids"] == model.encode_chat(
            [{"role": "user", "content": [PIL.Image.open(io.BytesIO(png(3, 40, 16))), "a"]}]
        )
        stream = client.post("/v1/chat/completions", json={**body, "size": "32x16", "stream": True}).text
        parts = [line for line in stream.split("\n") if "partial" in line]
        assert len(parts) >= 2
        rejected = client.post("/v1/chat/completions", json={**body, "size": "big"}).json()["error"]
        assert (rejected["code"], rejected["param"]) == ("invalid_size", "size")


def edit(client: TestClient, mask: PIL.Image.Image | None = None, **fields: Any) -> Any:
    files = {"image": ("cat.png", png(3), "image/png")}
    if mask is not None:
        files["mask"] = ("mask.png", png_bytes(mask), "image/png")
    return client.post("/v1/images/edits", data={"prompt": "make it blue", **fields}, files=files)


def png_bytes(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def pixels(item: dict[str, str]) -> bytes:
    return PIL.Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).convert("RGB").tobytes()


@pytest.mark.parametrize("mask", [None, square_mask(1, 2)])
def test_an_edit_is_the_one_of_the_library(client: TestClient, model: Model, mask: PIL.Image.Image | None) -> None:
    fields = {"seed": "4", "temperature": "1.0", "guidance_scale": "2.0", "n": "2", "size": "16x16"}
    result = edit(client, mask, **fields).json()
    rules = ImageSampling(temperature=1.0, guidance_scale=2.0)
    for item, seed in zip(result["data"], (4, 5), strict=True):
        sample = model.edit(noise(3), "make it blue", mask=mask, seed=seed, image=rules)
        (image,) = sample.decoded_parts
        assert isinstance(image, PIL.Image.Image)
        assert pixels(item) == image.tobytes()


def test_an_edit_of_a_model_that_says_what_it_draws(
    client: TestClient, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "default_image_sampling", ImageSampling(temperature=1.0, max_edit_text_tokens=6))
    result = edit(client, square_mask(1), seed="4").json()
    sample = model.edit(noise(3), "make it blue", mask=square_mask(1), seed=4)
    *_, image = sample.decoded_parts
    assert isinstance(image, PIL.Image.Image) and sample.token_ids[0] in model.vocabulary.text
    assert pixels(result["data"][0]) == image.tobytes()
    assert result["usage"]["output_tokens"] == len(sample.token_ids)
    text = edit(client, square_mask(3), stream="true", partial_images="1", seed="1").text
    assert (text.count("event: image_edit.partial_image"), text.count("event: image_edit.completed")) == (2, 1)


def test_an_edit_is_streamed(client: TestClient) -> None:
    text = edit(client, square_mask(3), stream="true", partial_images="1", seed="1").text
    assert text.count("event: image_edit.partial_image") == 2
    assert text.count("event: image_edit.completed") == 1


@pytest.mark.parametrize(
    ("mask", "fields", "message"),
    [
        (
            PIL.Image.new("L", (16, 9), 255),
            {},
            "the mask has 16 x 9 pixels, its image 16 x 16; expected the same size. Resize the mask.",
        ),
        (
            PIL.Image.new("L", (16, 16)),
            {},
            "the mask selects nothing; expected transparent pixels, or white ones in a mask without transparency. "
            "Paint the area to edit.",
        ),
        (None, {"n": "two"}, "n: Input should be a valid integer. Fix it, or leave it out."),
        (None, {"prompt": ""}, "prompt: String should have at least 1 character. Fix it, or leave it out."),
    ],
)
def test_invalid_edits_are_rejected(
    client: TestClient, mask: PIL.Image.Image | None, fields: dict[str, str], message: str
) -> None:
    rejected = edit(client, mask, **fields)
    assert (rejected.status_code, rejected.json()["error"]["message"]) == (400, message)


def test_an_edit_needs_an_image(client: TestClient) -> None:
    for body in ({"data": {"prompt": "a"}}, {"json": {"prompt": "a"}}):
        rejected = client.post("/v1/images/edits", **body)  # type: ignore[arg-type]
        assert rejected.status_code == 400
    rejected = client.post("/v1/images/edits", data={"prompt": "a"}, files={"mask": ("m.png", png(1), "image/png")})
    assert rejected.json()["error"]["message"] == (
        "the form has 0 images and 1 masks; expected an image and at most one mask."
    )
