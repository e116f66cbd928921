"""`calumma corpus`, through its parser."""

import argparse
from pathlib import Path

import pytest

from calumma.cli.corpus import add_corpus_command
from calumma.documents.readers import read_documents
from calumma.documents.writers import write_parquet
from calumma.errors import ConfigError
from tests.corpora.small_corpus import in_cache
from tests.documents.test_document_filter import DOCUMENTS


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = in_cache(tmp_path / "cache", monkeypatch)
    monkeypatch.setattr("calumma.cli.corpus.CORPORA", (corpus,), raising=False)


def call(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_corpus_command(parser.add_subparsers())
    args = parser.parse_args(["corpus", *arguments])
    args.run(args)


def test_fetch_says_what_it_did_and_again_that_it_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("fetch", "small", "--out", str(tmp_path))
    call("fetch", "small", "--out", str(tmp_path))
    lines = capsys.readouterr().out.replace("\n/", " /").splitlines()
    counts = f"3 documents, 3 images, 6 words in {tmp_path}/small; the counts match the catalog"
    assert f"small: fetched: {counts}" in lines
    assert lines[-1] == f"small: already complete: {counts}"


def test_the_list_shows_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("fetch", "small", "--out", str(tmp_path))
    capsys.readouterr()
    call("list", "--out", str(tmp_path))
    head, row, packages, made, how = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "kind", "documents", "license"]
    assert row.split(maxsplit=4) == ["small", "pairs", "3", "MIT", f"(fetched in {tmp_path}/small)"]
    assert packages == "    from small 1.0 (npm)"
    assert made.split()[:3] == ["still-lifes", "pairs", "any"]
    assert how == "    generated from the embedded corpus: calumma corpus make"


def test_make_says_what_it_made_and_again_that_it_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for state in ("generated", "already complete"):
        call("make", "still-lifes", "--documents", "3", "--side", "16", "--out", str(tmp_path))
        line = capsys.readouterr().out.replace("\n/", " /").splitlines()[-1]
        assert line.startswith(f"still-lifes: {state}: 3 documents, ")
        assert line.endswith(f" words in {tmp_path}/still-lifes")


def test_a_corpus_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        call("make", "still-lifes", "--documents", "0", "--out", str(tmp_path))
    assert str(caught.value) == (
        "--documents 0 --side 64 --seed 0; expected at least 1 document, 16 pixels and a seed of 0. Fix them."
    )


def test_an_unknown_aspect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        call("make", "still-lifes", "--documents", "1", "--aspects", "wide,round", "--out", str(tmp_path))
    assert str(caught.value) == "--aspects wide,round; expected some of square, wide, tall. Fix the names."


def test_a_limit_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        call("fetch", "small", "--out", str(tmp_path), "--limit", "0")
    assert str(caught.value) == "--limit 0; expected at least 1. Remove it to fetch all."


def test_choose_writes_the_selected_images_and_counts_the_dropped_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "all.parquet", tmp_path / "best.parquet"
    write_parquet(given, DOCUMENTS[:4])
    options = ["--attribute", "aesthetic", "--min-score", "6", "--target-side", "32"]
    call("choose", str(given), "--out", str(out), *options, "--max-documents", "1")
    assert [document.id for document in read_documents([out])] == ["square"]
    assert capsys.readouterr().out == f"{out}: 1 document selected; dropped: score 1, size 2\n"
