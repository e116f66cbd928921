"""The catalog, as a table without holes."""

from __future__ import annotations

import re

import pytest

from calumma.corpora.catalog import CORPORA, find_corpus
from calumma.errors import CorpusError
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
