"""The model in the package, served: three questions and an edit, by the API and on the page."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import PIL.Image
import pytest

import calumma
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_lifes import first_image
from calumma.generate.model import Model
from calumma.hub import SHIPPED_MODEL
from calumma.serve.config import ServeConfig
from tests.serve.conftest import listening, serving

CONFIG = ServeConfig(served_model_name=SHIPPED_MODEL)
PROMPT = "a red circle left of a banana on a blue background"


@pytest.fixture(scope="module")
def shipped() -> Iterator[Model]:
    yield calumma.load(SHIPPED_MODEL, device="cpu")


def _image_of(message: dict[str, Any]) -> PIL.Image.Image:
    [url] = [part["image_url"]["url"] for part in message["images"]]
    return PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def _turn(message: dict[str, Any]) -> dict[str, Any]:
    """Return an answer as a turn of the next request."""
    return {"role": "assistant", "content": message["content_parts"]}


def test_nothing_set_gives_the_image_of_the_models_own_rules_and_it_can_be_edited(shipped: Model) -> None:
    expected = first_image(shipped.generate([PROMPT], seed=5, max_new_tokens=80))
    assert expected is not None
    with serving(shipped, CONFIG) as (client, _):
        messages: list[dict[str, Any]] = [{"role": "user", "content": PROMPT}]
        request = {"model": SHIPPED_MODEL, "messages": messages, "seed": 5, "max_tokens": 200}
        answer = client.post("/v1/chat/completions", json=request).json()["choices"][0]["message"]
        drawn = _image_of(answer)
        assert read_still_life(drawn).scene == read_still_life(expected).scene
        messages += [_turn(answer), {"role": "user", "content": "What color is the background?"}]
        answer = client.post("/v1/chat/completions", json=request).json()["choices"][0]["message"]
        assert answer["content"] == read_still_life(drawn).scene.background
        messages += [_turn(answer), {"role": "user", "content": "Make the background green."}]
        answer = client.post("/v1/chat/completions", json=request).json()["choices"][0]["message"]
        assert read_still_life(_image_of(answer)).scene.background == "green"


def test_three_questions_and_an_edit_on_the_page(shipped: Model) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    from playwright.sync_api import expect

    from tests.browser import browser

    sent = (PROMPT, "What color is the background?", "How many things are there?", "Make the background green.",
            "Is there a banana?")  # fmt: skip
    with listening(shipped, CONFIG) as (address, _, _), browser() as chromium:
        page = chromium.new_page()
        page.goto(address)
        expect(page.locator("#model")).to_have_text(SHIPPED_MODEL)
        for number, text in enumerate(sent, start=1):
            page.get_by_label("Prompt", exact=True).last.fill(text)
            page.keyboard.press("Enter")
            expect(page.locator(".turn.assistant .facts")).to_have_count(number, timeout=60_000)
        answers = page.locator(".turn.assistant")
        assert [answers.nth(n).locator("img, canvas").count() > 0 for n in range(5)] == [
            True,
            False,
            False,
            True,
            False,
        ]
