"""The embedded corpus as it travels: small, free, split without leaks, and whole."""

import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import calumma.corpora
from calumma.corpora.captions import caption_group, group_split
from calumma.corpora.catalog import find_corpus
from calumma.corpora.embedded import EMBEDDED_KINDS, EmbeddedKind, embedded_sources, load_embedded
from calumma.documents.document import Document
from scripts.embedded_corpus.build import AUSTEN
from scripts.embedded_corpus.color_words import COLOR_WORDS

FOLDER = Path(calumma.corpora.__file__).parent / "embedded"
LICENSES = {"MIT", "Apache-2.0", "public domain", "BSD-3-Clause", "WordNet-3.0"}
LARGEST_BYTES = 12_000_000


@cache
def documents(kind: EmbeddedKind) -> list[Document]:
    return [*load_embedded(kind, "train"), *load_embedded(kind, "held-out")]


def test_it_is_at_most_12_megabytes() -> None:
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) <= LARGEST_BYTES


@pytest.mark.parametrize("kind", EMBEDDED_KINDS)
def test_licenses_are_permissive_and_those_of_the_catalog(kind: EmbeddedKind) -> None:
    for document in documents(kind):
        assert document.license in LICENSES
        corpus = AUSTEN if document.source == "austen" else find_corpus(document.source)
        assert corpus.redistributable and corpus.license == document.license


def test_every_source_is_attributed_and_its_texts_are_there() -> None:
    sources = {document.source for kind in EMBEDDED_KINDS for document in documents(kind)}
    assert embedded_sources() == sources
    attribution = (FOLDER / "ATTRIBUTION.md").read_text("utf-8")
    for source in sources:
        corpus = AUSTEN if source == "austen" else find_corpus(source)
        assert f"- License of the data: {corpus.license}" in attribution
        assert all(str(package) in attribution for package in corpus.packages)
    for line in attribution.split("](")[1:]:
        assert (FOLDER / line.split(")")[0]).read_text("utf-8").strip()


def test_no_concept_is_both_trained_on_and_held_out() -> None:
    image_documents = [*documents("emoji"), *documents("clip-art")]
    for document in image_documents:
        assert document.attributes["group"] == caption_group(document.attributes["caption"])
        assert document.attributes["split"] == group_split(document.attributes["group"])


@pytest.mark.parametrize("kind", EMBEDDED_KINDS)
def test_about_a_twentieth_is_held_out(kind: EmbeddedKind) -> None:
    counts = Counter(document.attributes["split"] for document in documents(kind))
    assert 0.03 < counts["held-out"] / counts.total() < 0.08


@pytest.mark.parametrize("kind", EMBEDDED_KINDS)
def test_every_image_opens_and_ids_are_unique(kind: EmbeddedKind) -> None:
    largest = 128 if kind == "documentation" else 64
    for document in documents(kind):
        for image in document.images:
            assert max(image.open().size) <= largest
    assert len({document.id for document in documents(kind)}) == len(documents(kind))


def test_images_have_a_caption_and_a_color() -> None:
    image_documents = [*documents("emoji"), *documents("clip-art")]
    for document in image_documents:
        assert document.text == document.attributes["caption"]
        assert document.attributes.get("colour", "red") in COLOR_WORDS
    assert sum("colour" in document.attributes for document in image_documents) > 0.99 * len(image_documents)


def test_skin_tones_are_balanced() -> None:
    tones = Counter(document.attributes.get("skin-tone") for document in documents("emoji"))
    del tones[None]
    assert len(tones) == 5
    assert max(tones.values()) - min(tones.values()) <= 10


def test_all_kinds_together_are_the_kinds_in_order() -> None:
    ids = [document.id for document in load_embedded(None, "held-out")]
    assert ids == [d.id for kind in EMBEDDED_KINDS for d in load_embedded(kind, "held-out")]


def test_emoji_load_quickly() -> None:
    start = time.process_time()
    count = sum(1 for _ in load_embedded("emoji", "train"))
    assert count > 5000
    assert time.process_time() - start < 2


def test_novels_of_a_rebuild_are_those_that_are_embedded() -> None:
    novels = list(AUSTEN.reader({}))
    assert len(novels) == AUSTEN.num_documents
    assert {novel.attributes["text"] for novel in novels} == {"Pride and Prejudice", "Northanger Abbey"}
