"""Generation of a corpus of any length, resumed, with its data card."""

from pathlib import Path

import pytest

import calumma.corpora.still_life_corpus
from calumma.corpora.still_life_corpus import StillLifeConfig, generate_still_lifes
from calumma.documents.readers import read_documents
from calumma.errors import Interrupted
from calumma.runtime import STOP


@pytest.fixture(autouse=True)
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calumma.corpora.still_life_corpus, "_DOCUMENTS_PER_FILE", 5)


def config(documents: int, seed: int = 0) -> StillLifeConfig:
    return StillLifeConfig(num_documents=documents, seed=seed, side=32)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_corpus_has_the_requested_length_and_is_generated_once(tmp_path: Path) -> None:
    counts: list[int] = []
    made = generate_still_lifes(tmp_path, config(12), counts.append)
    documents = list(read_documents([made.folder]))
    assert (made.is_new, made.num_documents, counts) == (True, 12, [5, 5, 2])
    assert [d.id for d in documents] == [f"still-lifes/0/{n}" for n in range(12)]
    assert made.num_images == sum(len(d.images) for d in documents)
    assert made.num_words == sum(len(d.text.split()) for d in documents)
    again = generate_still_lifes(tmp_path, config(12))
    assert (again.is_new, again.num_documents, again.num_images) == (False, 12, made.num_images)


def test_longer_shorter_and_interrupted_runs_end_in_the_same_files(tmp_path: Path) -> None:
    complete = generate_still_lifes(tmp_path / "complete", config(12)).folder
    for start in (7, 23):
        generate_still_lifes(tmp_path / str(start), config(start))
        generate_still_lifes(tmp_path / str(start), config(12))
        assert files(tmp_path / str(start) / "still-lifes") == files(complete)
    STOP.is_requested = True
    with pytest.raises(Interrupted):
        generate_still_lifes(tmp_path / "stopped", config(12))
    STOP.is_requested = False
    generate_still_lifes(tmp_path / "stopped", config(12, seed=1))
    assert files(generate_still_lifes(tmp_path / "stopped", config(12)).folder) == files(complete)


def test_the_card_has_the_counts_and_licenses_are_copied(tmp_path: Path) -> None:
    made = generate_still_lifes(tmp_path, config(6))
    card = (made.folder / "CARD.md").read_text()
    assert "| documents | 6: " in card
    assert f"| images | {made.num_images}, PNG, 32 x 32 pixels |" in card
    assert "Known limitations: " in card
    attribution = (made.folder / "ATTRIBUTION.md").read_text()
    assert "## noto" in attribution
    assert list((made.folder / "licenses").iterdir())
