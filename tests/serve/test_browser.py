"""The web page in a real browser: send, stop, edit, history, export, phone, dark mode."""

import base64
import io
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from calumma.documents.readers import read_documents
from calumma.generate.engine import Engine
from calumma.serve.handler import RequestHandler
from tests.browser import browser, serious_violations
from tests.images import png
from tests.serve.test_handler import is_idle

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, Route, expect


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@contextmanager
def opened(chromium: Browser, address: str, *, expects_errors: bool = False, **options: Any) -> Iterator[Page]:
    """Open the page; its console must stay empty, unless a request is rejected."""
    context = chromium.new_context(**options)
    page = context.new_page()
    messages: list[str] = []
    page.on("console", lambda result: messages.append(result.text) if result.type == "error" else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(address)
    expect(page.locator("#model")).to_have_text("tiny")
    yield page
    assert expects_errors or messages == []
    context.close()


def _ask(page: Page, text: str) -> None:
    page.get_by_label("Prompt", exact=True).last.fill(text)
    page.keyboard.press("Enter")


def _done(page: Page, answers: int) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=60_000)
    expect(page.locator(".turn.assistant .facts")).to_have_count(answers, timeout=60_000)


def test_text_and_an_image_are_sent_and_the_answer_is_streamed(
    running_server: tuple[str, RequestHandler], chromium: Browser
) -> None:
    with opened(chromium, running_server[0]) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Show tokens").check()
        page.get_by_label("Seed").fill("3")
        page.get_by_label("Prompt", exact=True).fill("before")
        image = {"name": "a.png", "mimeType": "image/png", "buffer": png(1)}
        page.locator("#file").set_input_files([image])
        expect(page.locator("#parts .tile")).to_have_count(1)
        assert serious_violations(page) == []
        _ask(page, "after it")
        _done(page, 1)
        user = page.locator(".turn.user .body")
        expect(user.locator("img")).to_have_count(1)
        assert user.inner_text().split() == ["before", "after", "it"]
        assert page.locator(".turn.user .strip .code").count() == 4
        answer = page.locator(".turn.assistant")
        assert answer.locator(".strip span").count() > 0
        assert answer.locator(".body").locator("span, img").count() > 0
        answer.locator(".strip span").first.hover()
        expect(page.locator("#detail")).to_contain_text("token ")
        assert serious_violations(page) == []


def test_an_answer_of_images_only(running_server: tuple[str, RequestHandler], chromium: Browser) -> None:
    with opened(chromium, running_server[0]) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Output").select_option("image")
        _ask(page, "draw")
        _done(page, 1)
        expect(page.locator(".turn.assistant .body img").first).to_be_visible()
        assert page.locator(".turn.assistant .body span").count() == 0


@contextmanager
def _begun_answer(page: Page, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ask for a text, and hold the engine in its answer, of which the page shows the first words."""
    step, num_steps, is_released = Engine.step, itertools.count(), threading.Event()

    def hold(engine: Engine) -> Any:
        if next(num_steps) >= 10:
            assert is_released.wait(60)
        return step(engine)

    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Output").select_option("text")
    page.get_by_label("Seed").fill("1")
    monkeypatch.setattr(Engine, "step", hold)
    try:
        _ask(page, "describe everything")
        expect(page.locator(".turn.assistant .body span")).not_to_be_empty()
        yield
    finally:
        is_released.set()
        monkeypatch.setattr(Engine, "step", step)


def test_an_answer_is_stopped_and_regenerated(
    running_server: tuple[str, RequestHandler], chromium: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(chromium, running_server[0]) as page:
        with _begun_answer(page, monkeypatch):
            page.get_by_role("button", name="Stop").click()
            _done(page, 1)
            expect(page.locator(".facts")).to_contain_text("stopped")
        _ask(page, "once more")
        _done(page, 2)
        page.get_by_role("button", name="Another answer").click()
        expect(page.get_by_role("button", name="Stop")).to_be_hidden(timeout=60_000)
        expect(page.get_by_role("button", name="Another answer")).to_be_visible()
    assert is_idle(running_server[1])


def test_an_answer_belongs_to_the_conversation_that_asked(
    running_server: tuple[str, RequestHandler], chromium: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(chromium, running_server[0]) as page:
        with _begun_answer(page, monkeypatch):
            page.get_by_role("button", name="New", exact=True).click()
            expect(page.get_by_role("button", name="Send")).to_be_visible()
            assert page.locator(".turn").count() == 0
        page.get_by_role("button", name="History").click()
        page.get_by_role("button", name="describe everything", exact=True).click()
        expect(page.locator(".facts")).to_contain_text("stopped")


def test_a_prompt_is_sent_once_while_the_tokens_before_it_are_read(
    running_server: tuple[str, RequestHandler], chromium: Browser
) -> None:
    with opened(chromium, running_server[0]) as page:
        paths = _requested(page)
        held: list[Route] = []
        page.route("**/tokenize", lambda route: held.append(route))
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Show tokens").check()
        with page.expect_request("**/tokenize"):
            _ask(page, "first")
        _ask(page, "second")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        for route in held:
            route.continue_()
        _done(page, 1)
        assert paths == ["chat/completions"]
        assert page.get_by_label("Prompt", exact=True).last.input_value() == "second"


def test_a_prompt_is_edited_and_the_history_survives_a_reload(
    running_server: tuple[str, RequestHandler], chromium: Browser
) -> None:
    with opened(chromium, running_server[0]) as page:
        _ask(page, "first words")
        _done(page, 1)
        page.get_by_role("button", name="Edit", exact=True).click()
        _ask(page, "second words")
        _done(page, 1)
        assert page.locator(".turn.user .body").all_inner_texts() == ["second words"]
        page.reload()  # the conversation is saved, though nothing has waited for it
        expect(page.locator(".turn")).to_have_count(0)
        page.get_by_role("button", name="History").click()
        page.get_by_role("button", name="first words", exact=True).click()
        assert page.locator(".turn.user .body").all_inner_texts() == ["second words"]
        page.get_by_role("button", name="Delete: first words").click()
        expect(page.locator("#conversations li")).to_have_count(0)


def test_a_conversation_is_saved_as_a_document(
    running_server: tuple[str, RequestHandler], chromium: Browser, tmp_path: Path
) -> None:
    with opened(chromium, running_server[0]) as page:
        _ask(page, "<b>no markup</b> & so on")
        _done(page, 1)
        assert page.locator(".turn.user b").count() == 0
        page.get_by_role("button", name="Settings").click()
        with page.expect_download() as result:
            page.get_by_role("button", name="Save as JSON").click()
        result.value.save_as(tmp_path / "saved.jsonl")
        with page.expect_download() as result:
            page.get_by_role("button", name="Save as HTML").click()
        result.value.save_as(tmp_path / "saved.html")
    (document,) = read_documents([tmp_path / "saved.jsonl"])
    assert [turn.role for turn in document.messages] == ["user", "assistant"]
    assert document.messages[0].parts[0].text == "<b>no markup</b> & so on"
    saved = (tmp_path / "saved.html").read_text()
    assert "&lt;b&gt;no markup&lt;/b&gt; &amp; so on" in saved
    assert json.loads((tmp_path / "saved.jsonl").read_text())["source"] == "calumma serve"


def test_a_phone_in_dark_mode(running_server: tuple[str, RequestHandler], chromium: Browser) -> None:
    with opened(chromium, running_server[0], viewport={"width": 360, "height": 700}, color_scheme="dark") as page:
        assert serious_violations(page) == []
        _ask(page, "a" * 50)
        _done(page, 1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert serious_violations(page) == []
        page.get_by_role("button", name="Settings").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert serious_violations(page) == []
        page.keyboard.press("Escape")
        expect(page.locator("#settings")).to_be_hidden()


def test_an_error_of_the_server_is_shown(running_server: tuple[str, RequestHandler], chromium: Browser) -> None:
    with opened(chromium, running_server[0], expects_errors=True) as page:
        _ask(page, "far too long " * 200)
        expect(page.locator("#error")).to_contain_text("expected")


def test_sampling_is_left_to_the_model_until_it_is_changed(
    running_server: tuple[str, RequestHandler], chromium: Browser
) -> None:
    rule = running_server[1].model.default_image_sampling
    bodies: list[dict[str, Any]] = []
    for changed in ("", "2.5"):
        with opened(chromium, running_server[0]) as page:
            page.on(
                "request",
                lambda request: (
                    bodies.append(json.loads(request.post_data or "{}"))
                    if request.url.endswith("/v1/chat/completions")
                    else None
                ),
            )
            page.get_by_role("button", name="Settings").click()
            guidance = page.locator("#guidance_scale")
            expect(guidance).to_have_value(f"{rule.guidance_scale:g}")
            if changed:
                guidance.fill(changed)
            _ask(page, "draw")
            _done(page, 1)
    assert not bodies[0].keys() & {"temperature", "guidance_scale"}
    assert bodies[1]["guidance_scale"] == 2.5
    assert "temperature" not in bodies[1]


def _answer_with_an_image(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Output").select_option("image")
    page.get_by_label("Show tokens").check()
    page.get_by_label("Seed").fill("1")
    _ask(page, "draw")
    _done(page, 1)


def _pixels(url: str | None) -> bytes:
    assert url is not None
    return PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB").tobytes()


def test_cells_show_their_probability_by_mouse_and_by_keyboard(
    running_server: tuple[str, RequestHandler], chromium: Browser
) -> None:
    with opened(chromium, running_server[0]) as page:
        _answer_with_an_image(page)
        answer = page.locator(".turn.assistant")
        frame = answer.locator(".frame").first
        box = frame.locator("img").bounding_box()
        assert box is not None
        frame.hover(position={"x": box["width"] * 0.75, "y": box["height"] * 0.25})
        detail = page.locator("#detail")
        expect(detail).to_contain_text("row 1, column 2, probability ")
        expect(detail).to_contain_text("next best code ")
        expect(frame.locator(".mark")).to_be_visible()
        mark = frame.locator(".mark").bounding_box()
        assert mark is not None
        assert abs(mark["x"] - box["x"] - box["width"] / 2) < 3
        assert abs(mark["width"] - box["width"] / 2) < 3
        answer.locator(".strip").focus()
        page.keyboard.press("ArrowDown")
        expect(detail).to_contain_text("row 2, column 2")
        page.keyboard.press("ArrowLeft")
        expect(detail).to_contain_text("row 2, column 1")
        assert serious_violations(page) == []


def test_guidance_scales_are_compared_with_one_seed(
    running_server: tuple[str, RequestHandler], chromium: Browser
) -> None:
    with opened(chromium, running_server[0]) as page:
        _answer_with_an_image(page)
        page.get_by_role("button", name="Compare guidance").click()
        scale = running_server[1].model.default_image_sampling.guidance_scale
        expect(page.locator(".comparison figcaption")).to_have_text(
            [f"guidance {number:g}" for number in (1, scale, 2 * scale)], timeout=60_000
        )
        compared = page.locator(".comparison img").nth(1).get_attribute("src")
        answered = page.locator(".turn.assistant .body img").first.get_attribute("src")
        assert _pixels(compared) == _pixels(answered)
        assert serious_violations(page) == []


def test_a_link_restores_the_conversation(running_server: tuple[str, RequestHandler], chromium: Browser) -> None:
    with opened(chromium, running_server[0]) as page:
        _answer_with_an_image(page)
        page.get_by_role("button", name="Copy link").click()
        expect(page.locator("#status")).to_contain_text("link")
        link = page.evaluate("location.href")
        image = page.locator(".turn.assistant .body img").first.get_attribute("src")
    with opened(chromium, link) as page:
        expect(page.locator(".turn.user .body")).to_have_text("draw")
        assert page.locator(".turn.assistant .body img").first.get_attribute("src") == image
    with opened(chromium, link[:-40]) as page:
        expect(page.locator("#status")).to_contain_text("is damaged")
        expect(page.locator(".turn")).to_have_count(0)


def test_a_conversation_too_long_for_a_link_is_not_cut(
    running_server: tuple[str, RequestHandler], chromium: Browser
) -> None:
    with opened(chromium, running_server[0], expects_errors=True) as page:
        text = page.evaluate(
            "Array.from(crypto.getRandomValues(new Uint8Array(60000)), (n) => n.toString(36)).join('')"
        )
        _ask(page, text)
        expect(page.locator("#error")).to_contain_text("expected")
        page.get_by_role("button", name="Settings").click()
        page.get_by_role("button", name="Copy link").click()
        expect(page.locator("#status")).to_contain_text("too long for a link")
        assert "#" not in page.evaluate("location.href")


def _paint(page: Page, row: int, column: int) -> None:
    """Click on a cell of the mask editor, of an image of 2 x 2 cells."""
    box = page.locator("#mask-grid").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * (column + 0.5) / 2, box["y"] + box["height"] * (row + 0.5) / 2)


def _requested(page: Page) -> list[str]:
    """Collect the ends of the paths of requests for answers."""
    paths: list[str] = []
    page.on(
        "request", lambda request: paths.append(request.url.rpartition("/v1/")[2]) if "/v1/" in request.url else None
    )
    return paths


def test_a_painted_cell_changes_and_the_others_keep_their_codes(
    running_server: tuple[str, RequestHandler], chromium: Browser
) -> None:
    model = running_server[1].model
    with opened(chromium, running_server[0]) as page:
        _answer_with_an_image(page)
        before = page.locator(".turn.assistant .body img").first.get_attribute("src")
        page.get_by_role("button", name="Edit image").first.click()
        assert serious_violations(page) == []
        expect(page.locator("#mask-count")).to_contain_text("No cell is painted")
        _paint(page, 1, 0)
        expect(page.locator("#mask-count")).to_contain_text("1 of 4 cells change")
        page.get_by_label("Instruction").fill("again")
        page.get_by_role("button", name="Change the image").click()
        _done(page, 2)
        expect(page.locator(".turn.user .frame canvas")).to_have_count(1)
        expect(page.get_by_alt_text("an image of which 1 of 4 cells are to change")).to_be_visible()
        after = page.locator(".turn.assistant .body img").last.get_attribute("src")
        expect(page.locator(".turn.assistant").last.locator(".strip .code")).to_have_count(4)
        assert serious_violations(page) == []
    image = PIL.Image.open(io.BytesIO(base64.b64decode((before or "").partition(",")[2])))
    mask = PIL.Image.new("L", image.size)
    side = image.width // 2
    mask.paste(255, (0, side, side, 2 * side))
    sample = model.edit(image, "again", mask=mask, seed=1)
    assert _pixels(after) == next(part for part in sample.parts if isinstance(part, PIL.Image.Image)).tobytes()
    codes = [model.vocabulary.id_to_code(id_) for id_ in sample.token_ids if id_ in model.vocabulary.codes]
    original = model.encode_image(image)
    assert [code for cell, code in enumerate(codes) if cell != 2] == [original[0], original[1], original[3]]


def test_a_mask_is_painted_by_keyboard_alone(running_server: tuple[str, RequestHandler], chromium: Browser) -> None:
    with opened(chromium, running_server[0]) as page:
        _answer_with_an_image(page)
        paths = _requested(page)
        page.get_by_role("button", name="Edit image").first.focus()
        page.keyboard.press("Enter")
        cells = page.get_by_role("gridcell")
        expect(page.get_by_role("gridcell", name="row 1, column 1")).to_be_focused()
        for key in ("Space", "Shift+ArrowRight", "ArrowDown", "ArrowLeft"):
            page.keyboard.press(key)
        selected = [cells.nth(number).get_attribute("aria-selected") for number in range(4)]
        assert selected == ["true", "true", "false", "false"]
        expect(page.get_by_role("gridcell", name="row 2, column 1")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("#mask-editor")).to_be_hidden()
        assert paths == []
        page.keyboard.press("Enter")  # the focus is back on the button
        expect(page.get_by_role("gridcell", name="row 1, column 1")).to_be_focused()
        page.keyboard.press("Space")
        for _ in range(6):
            page.keyboard.press("Tab")
        expect(page.get_by_label("Instruction")).to_be_focused()
        page.keyboard.type("once more")
        page.keyboard.press("Enter")
        _done(page, 2)
        assert paths == ["images/edits"]


def test_a_mask_editor_that_is_opened_at_once_again_still_sends(
    running_server: tuple[str, RequestHandler], chromium: Browser
) -> None:
    with opened(chromium, running_server[0]) as page:
        _answer_with_an_image(page)
        paths = _requested(page)
        # The event of the first closing comes when the dialog is open for the second time.
        page.get_by_role("button", name="Edit image").first.evaluate(
            "(button) => { button.click(); document.getElementById('mask-editor').close('cancel'); button.click(); }"
        )
        page.get_by_label("Instruction").fill("once more")
        page.get_by_role("button", name="Change the image").click()
        _done(page, 2)
        assert paths == ["images/edits"]


def test_an_edit_by_instruction_is_repeated_and_changed(
    running_server: tuple[str, RequestHandler], chromium: Browser
) -> None:
    with opened(chromium, running_server[0]) as page:
        _answer_with_an_image(page)
        paths = _requested(page)
        page.get_by_role("button", name="Edit image").first.click()
        page.get_by_label("Instruction").fill("change it")
        page.get_by_role("button", name="Change the image").click()
        _done(page, 2)
        expect(page.locator(".turn.user .frame canvas")).to_have_count(0)
        with page.expect_response("**/v1/images/edits"):
            page.get_by_role("button", name="Another answer").click()
        _done(page, 2)
        page.get_by_role("button", name="Edit", exact=True).last.click()
        expect(page.get_by_label("Instruction")).to_have_value("change it")
        _paint(page, 0, 1)
        with page.expect_response("**/v1/images/edits"):
            page.get_by_role("button", name="Change the image").click()
        _done(page, 2)
        expect(page.locator(".turn.user .frame canvas")).to_have_count(1)
        assert [path for path in paths if path == "images/edits"] == ["images/edits"] * 3
        page.get_by_role("button", name="Copy link").click()
        expect(page.locator("#status")).to_contain_text("link")
        link = page.evaluate("location.href")
    with opened(chromium, link) as page:
        expect(page.locator(".turn.user .frame canvas")).to_have_count(1)
