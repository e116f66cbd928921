"""The annotation page in a real browser: two annotators, end to end."""

from collections.abc import Iterator

import pytest

from calumma.compare.annotation_app import make_annotation_app
from calumma.compare.judgment_store import JudgmentStore
from calumma.compare.study import Study
from calumma.compare.study_report import study_metrics
from tests.browser import browser, serve_app

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


def _start(page: Page, address: str, name: str) -> list[str]:
    """Open the page under a name; return the errors of its console."""
    complaints: list[str] = []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.get_by_label("Your name or number").fill(name)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#work")).to_be_visible()
    return complaints


def _prefer(page: Page, system: str) -> None:
    """Answer all questions about the item on the page and submit."""
    boxes = page.locator("fieldset")
    if page.locator("#answers section").count() == 2:
        first = page.locator("#answers section").first.inner_text()
        boxes.first.locator("label").nth(0 if system in first else 2).click()
    else:
        for box in boxes.all():
            box.locator("label").first.click()
    key = page.locator("#progress").inner_text()
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#progress")).not_to_have_text(key)


def test_two_annotators_judge_all_items_and_the_report_has_their_votes(study: Study, chromium: Browser) -> None:
    store = JudgmentStore(study.folder)
    with serve_app(make_annotation_app(study, store)) as address:
        for name in ("ann", "bob"):
            page = chromium.new_page()
            complaints = _start(page, address, name)
            for _ in study.items():
                _prefer(page, "ours")
            expect(page.locator("#end")).to_be_visible()
            assert complaints == []
            page.close()
    judgments = store.judgments()
    store.close()
    assert len(judgments) == 2 * len(list(study.items()))
    two = Study(folder=study.folder, systems=study.systems, annotators=2, seed=3, prompts=study.prompts)
    rates = {metric.name: metric.value for metric in study_metrics(two, judgments)}
    assert rates["win_rate[ours against other]"] == 1.0
    assert rates["task_fulfillment[other]=fulfills"] == 1.0


def test_keys_alone_are_enough_and_markup_is_shown_as_text(study: Study, chromium: Browser) -> None:
    part = study.prompts["p1"].content[0]
    object.__setattr__(part, "text", "<img src=x onerror=alert(1)> text")
    store = JudgmentStore(study.folder)
    with serve_app(make_annotation_app(study, store)) as address:
        page = chromium.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        complaints = _start(page, address, "keys")
        for _ in study.items():
            if "onerror" in page.locator("#prompt").inner_text():
                assert page.locator("#prompt img").count() == 0
            for _ in page.locator("fieldset").all():
                page.keyboard.press("1")
            key = page.locator("#progress").inner_text()
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390
            page.keyboard.press("Enter")
            expect(page.locator("#progress")).not_to_have_text(key)
        expect(page.locator("#end")).to_be_visible()
        assert complaints == []
        page.close()
    store.close()
