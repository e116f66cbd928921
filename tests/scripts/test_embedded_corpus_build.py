"""The build of the embedded corpus, on documents made up here."""

from pathlib import Path

import pytest

from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Text
from scripts.embedded_corpus import build
from tests.corpora.packages import text, write_image


@pytest.fixture(autouse=True)
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the readers of packages by readers of made-up documents."""
    figure = image_from_file(write_image(tmp_path / "a.png", (256, 128)))
    pages = {"good": "a plot", "bad": "faces of the olivetti set", "mnist": "x"}
    sources = {
        "docs": [Document(id=name, content=(Text(t), figure)) for name, t in pages.items()],
        "wordnet": _texts("noun", "noun", 400),
    }
    monkeypatch.setattr(build, "_read", lambda name: iter(sources[name]))


def _texts(name: str, text: str, count: int) -> list[Document]:
    return [
        Document(id=f"{name}-{number}", content=(Text("x"),), attributes={"text": text}) for number in range(count)
    ]


def test_the_last_twentieth_of_the_sampled_glosses_is_held_out() -> None:
    splits = [document.attributes["split"] for document in build._glosses()]
    assert 20 < len(splits) < 100
    assert splits.count("held-out") == round(len(splits) * build.TEXT_HELD_OUT_FRACTION)
    assert splits == sorted(splits, reverse=True)


def test_pages_that_show_data_with_other_terms_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "DOCUMENTATION", ("docs",))
    (page,) = build._documentation()
    assert page.id == "good"
    assert page.images[0].open().size == (128, 64)
    assert set(page.attributes) == {"group", "split"}


def test_a_sample_is_decided_by_the_name() -> None:
    sampled = [build._sampled(str(number), 8) for number in range(800)]
    assert 60 < sum(sampled) < 140
    assert sampled == [build._sampled(str(number), 8) for number in range(800)]


def test_english_words_are_single_words(tmp_path: Path) -> None:
    for suffix in ("noun", "verb", "adj", "adv"):
        text(tmp_path / f"index.{suffix}", "  1 license\nafraid a 1\nex-wife n 1\n")
    assert build.english_words(tmp_path) == {"afraid"}
