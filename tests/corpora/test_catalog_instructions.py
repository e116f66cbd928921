"""The six categories as corpora: what they are made of, and under which license."""

from __future__ import annotations

from pathlib import Path

from calumma.corpora.catalog import find_corpus
from calumma.corpora.catalog_instructions import INSTRUCTION_CORPORA
from calumma.documents.document import Text
from calumma.train.config_finetune import CATEGORIES


def test_there_is_one_for_each_category_of_the_paper() -> None:
    names = [corpus.name.removeprefix("sft-").replace("-", "_") for corpus in INSTRUCTION_CORPORA]
    assert tuple(names) == CATEGORIES


def test_a_category_has_the_packages_and_licenses_of_all_it_is_made_of() -> None:
    corpus = find_corpus("sft-interleaved-generation")
    parts = [find_corpus(name) for name in ("fluent-flat", "noto", "fluent-3d", "wordnet")]
    assert {package for part in parts for package in part.packages} == set(corpus.packages)
    assert corpus.license == "MIT and Apache-2.0 and WordNet-3.0"
    assert "made by templates" in corpus.notice
    assert "Copyright (c) Microsoft" in corpus.notice and "Google" in corpus.notice


def test_safety_reads_the_dictionary_for_words_that_sound_unsafe(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/wordnet"
    folder.mkdir(parents=True)
    line = "00001 03 n 01 poison 0 000 | a substance that harms  \n"
    for suffix in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{suffix}").write_text(line if suffix == "noun" else "")
    made = list(find_corpus("sft-safety").read({"wordnet-base": tmp_path}))
    last = made[-1]
    assert last.messages[1].parts == (Text("a substance that harms"),)
    assert last.license == "WordNet-3.0"
    assert last.attributes["category"] == "safety"
    assert len(made) == 2170
    for document in made:
        held_out = document.attributes["split"] == "held-out"
        assert document.source == ("sft-safety-held-out" if held_out else "sft-safety")
