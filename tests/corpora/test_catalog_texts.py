"""The table of texts."""

from calumma.corpora.catalog_texts import TEXT_CORPORA


def test_texts_have_figures_if_they_are_interleaved() -> None:
    for corpus in TEXT_CORPORA:
        assert corpus.kind in ("interleaved", "text")
        assert (corpus.num_images > 0) == (corpus.kind == "interleaved")


def test_every_text_comes_from_one_debian_package() -> None:
    for corpus in TEXT_CORPORA:
        (package,) = corpus.packages
        assert package.registry == "apt"
