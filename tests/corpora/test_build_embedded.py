"""The build of the embedded corpus, on documents made up here."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.corpora import build_embedded
from calumma.corpora.image_conversion import image_from_file
from calumma.documents.document import Document, Text
from tests.corpora.packages import picture


@pytest.fixture(autouse=True)
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of documents that are made here, in the place of those of packages."""
    figure = image_from_file(picture(tmp_path / "a.png", (256, 128)))
    pages = {"good": "a plot", "bad": "faces of the olivetti set", "mnist": "x"}
    sources = {
        "docs": [Document(id=name, content=(Text(t), figure)) for name, t in pages.items()],
        "wordnet": _texts("noun", "noun", 400),
        "austen": [*_texts("emma", "Emma", 1), *_texts("pride", build_embedded.NOVELS[0], 20)],
    }
    monkeypatch.setattr(build_embedded, "_read", lambda name: iter(sources[name]))


def _texts(name: str, text: str, count: int) -> list[Document]:
    return [
        Document(id=f"{name}-{number}", content=(Text("x"),), attributes={"text": text})
        for number in range(count)
    ]


def test_the_last_twentieth_of_each_text_is_held_out() -> None:
    documents = list(build_embedded._texts())
    pride = [d.attributes["split"] for d in documents if d.id.startswith("pride")]
    assert pride == ["train"] * 19 + ["held-out"]
    nouns = [d.attributes["split"] for d in documents if d.id.startswith("noun")]
    assert 20 < len(nouns) < 100
    assert nouns == sorted(nouns, reverse=True)
    assert not [d for d in documents if d.id.startswith("emma")]


def test_pages_that_show_data_with_other_terms_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build_embedded, "DOCUMENTATION", ("docs",))
    (page,) = build_embedded._documentation()
    assert page.id == "good"
    assert page.images[0].open().size == (128, 64)
    assert set(page.attributes) == {"group", "split"}


def test_a_sample_is_decided_by_the_name() -> None:
    sampled = [build_embedded._sampled(str(number), 8) for number in range(800)]
    assert 60 < sum(sampled) < 140
    assert sampled == [build_embedded._sampled(str(number), 8) for number in range(800)]
