"""A corpus names its documents after itself."""

from calumma.corpora.catalog_entry import Corpus, Package
from calumma.documents.document import Document, Text


def test_documents_carry_source_and_license() -> None:
    corpus = Corpus(
        name="x",
        kind="text",
        packages=(),
        license="MIT",
        redistributable=True,
        num_documents=2,
        reader=lambda folders: iter([Document(id="1", content=(Text("a"),)), Document(id="2", license="CC0-1.0")]),
    )
    first, second = corpus.read({})
    assert (first.id, first.source, first.license) == ("x/1", "x", "MIT")
    assert second.license == "CC0-1.0"


def test_a_package_says_where_it_is_from() -> None:
    assert str(Package("apt", "words", "1.0-1")) == "words 1.0-1 (apt)"
