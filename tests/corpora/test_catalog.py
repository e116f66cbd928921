"""The catalog, as a table without holes."""

import re
from pathlib import Path

import pytest

from calumma.corpora.catalog import CORPORA, INSTRUCTION_CORPORA, find_corpus
from calumma.documents.document import Text
from calumma.errors import CorpusError
from calumma.train.config_finetune import CATEGORIES
from scripts.embedded_corpus.build import CLIP_ART, DOCUMENTATION, EMOJI

WORDS_ALONE = {"sft-text", "sft-code", "sft-safety"}
FREE = re.compile(r"MIT|ISC|BSD-3-Clause|Apache-2\.0|public domain|WordNet-3\.0| and ")


def test_names_are_unique_and_fit_for_folders() -> None:
    names = [corpus.name for corpus in CORPORA]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in names)


def test_every_corpus_has_packages_a_license_and_counts() -> None:
    for corpus in CORPORA:
        assert corpus.packages and corpus.license and corpus.num_documents > 0, corpus.name
        words_alone = corpus.kind == "text" or corpus.name in WORDS_ALONE
        assert (corpus.num_images > 0) != words_alone, corpus.name


def test_what_may_be_passed_on_is_permissive() -> None:
    for corpus in CORPORA:
        if corpus.redistributable:
            assert not FREE.sub("", corpus.license), corpus.name


def test_what_is_embedded_may_be_passed_on() -> None:
    for name in (*EMOJI, *CLIP_ART, *DOCUMENTATION, "wordnet"):
        assert find_corpus(name).redistributable


def test_what_must_not_be_trained_on_is_for_evaluation() -> None:
    assert find_corpus("cifar10-test").kind == "evaluation"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(CorpusError) as caught:
        find_corpus("coco")
    assert str(caught.value) == (
        f"there is no corpus 'coco'; expected one of {', '.join(c.name for c in CORPORA)}. See `calumma corpus list`."
    )
    with pytest.raises(CorpusError) as caught:
        find_corpus("wrodnet")
    assert str(caught.value) == ("there is no corpus 'wrodnet'; expected perhaps wordnet. See `calumma corpus list`.")


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
