"""The annotators' page in a real browser: two annotators, end to end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from calumma.compare.annotation_app import make_annotation_app
from calumma.compare.judgment_store import JudgmentStore
from calumma.compare.study import Study
from calumma.compare.study_report import study_metrics
from tests.browser import browser, served

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


def _begin(page: Page, address: str, name: str) -> list[str]:
    """Open the page under a name; what its console complains of is gathered."""
    complaints: list[str] = []
    page.on("console", lambda told: told.type == "error" and complaints.append(told.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.get_by_label("Your name or number").fill(name)
    page.get_by_role("button", name="Begin").click()
    expect(page.locator("#work")).to_be_visible()
    return complaints


def _prefer(page: Page, system: str) -> None:
    """Answer all that is asked of the item on the page, and go on."""
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


def test_two_annotators_judge_all_and_the_report_says_what_they_said(
    study: Study, chromium: Browser
) -> None:
    store = JudgmentStore(study.folder)
    with served(make_annotation_app(study, store)) as address:
        for name in ("ann", "bob"):
            page = chromium.new_page()
            complaints = _begin(page, address, name)
            for _ in study.items():
                _prefer(page, "ours")
            expect(page.locator("#end")).to_be_visible()
            assert complaints == []
            page.close()
    told = store.judgments()
    store.close()
    assert len(told) == 2 * len(list(study.items()))
    two = Study(
        folder=study.folder, systems=study.systems, annotators=2, seed=3, prompts=study.prompts
    )
    rates = {figure.name: figure.value for figure in study_metrics(two, told)}
    assert rates["win_rate[ours against other]"] == 1.0
    assert rates["task_fulfilment[other]=fulfils"] == 1.0


def test_keys_alone_are_enough_and_markup_is_shown_as_text(study: Study, chromium: Browser) -> None:
    part = study.prompts["p1"].content[0]
    object.__setattr__(part, "text", "<img src=x onerror=alert(1)> tell")
    store = JudgmentStore(study.folder)
    with served(make_annotation_app(study, store)) as address:
        page = chromium.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        complaints = _begin(page, address, "keys")
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
