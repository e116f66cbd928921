import pytest

from calumma.documents.document import Document, Text, Turn
from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext, derangement, subsample
from calumma.generate.model import Model
from tests.evaluate.oracle import letter_documents, oracle_context, oracle_model, plain_image


def test_pairs_are_plain_documents_of_one_text_and_one_image() -> None:
    documents = [
        Document(id="text", content=(Text("a"),)),
        Document(id="image first", content=(plain_image(), Text("b"))),
        Document(id="two images", content=(plain_image(), Text("c"), plain_image())),
        Document(id="turns", messages=(Turn("user", (Text("d"),)), Turn("assistant", (plain_image(),)))),
    ]
    context = EvalContext(oracle_model(0.0), documents)
    assert [pair.document.id for pair in context.pairs] == ["image first"]
    assert [len(codes) for codes in context.codes] == [0, 1, 2, 1]


def test_a_pair_that_is_longer_than_the_model_reads_is_no_pair() -> None:
    long = Document(id="long", content=(Text("a" * 57), plain_image()))
    fits = Document(id="fits", content=(Text("a" * 56), plain_image()))
    context = EvalContext(oracle_model(0.0), [long, fits])
    assert [pair.document.id for pair in context.pairs] == ["fits"]


def test_images_are_encoded_as_the_model_encodes_them(model: Model, scenes: list[Document]) -> None:
    context = EvalContext(model, scenes)
    assert context.codes[3] == [model.encode_image(scenes[3].images[0].open())]


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(EvaluationError) as caught:
        oracle_context("aab", 0.0).require_pairs("retrieval", 10)
    assert str(caught.value) == (
        "retrieval: found 2 different texts among 3 documents of one text and one image; expected "
        "at least 10. Give more such documents (--documents, --limit), or leave this task out."
    )


def test_counts_are_those_of_the_documents_sequences() -> None:
    context = oracle_context("ab", 0.0)
    counts = context.token_counts()
    vocabulary = context.model.vocabulary
    assert counts[vocabulary.bos] == counts[vocabulary.eos] == counts[vocabulary.begin_image] == 2
    assert counts[vocabulary.code_to_id(1)] == 4
    assert counts.sum() == 2 * (1 + 1 + 1 + 4 + 1 + 1)


def test_choosing_keeps_the_order_and_repeats_itself() -> None:
    documents = letter_documents("abcdefghij")
    some = subsample(documents, 4, seed=1)
    assert some == subsample(documents, 4, seed=1) != subsample(documents, 4, seed=2)
    assert [d.id for d in some] == sorted(d.id for d in some)
    assert subsample(documents, None, 0) == subsample(documents, 10, 0) == documents


def test_each_gets_anothers_in_an_order_that_says_nothing() -> None:
    items = list(range(40))
    given = derangement(items, seed=1)
    assert sorted(given) == items
    assert all(own != other for own, other in zip(items, given, strict=True))
    assert sum(abs(own - other) == 1 for own, other in zip(items, given, strict=True)) < 10
    assert given == derangement(items, seed=1) != derangement(items, seed=2)


def test_as_many_questions_are_shown_as_are_asked_for() -> None:
    assert EvalConfig().first_to_log("abc", [1, 2, 3]) == []
    assert EvalConfig(log_samples=2).first_to_log("abc", [1, 2, 3]) == [("a", 1), ("b", 2)]
    assert EvalConfig(log_samples=9).first_to_log("ab", [1, 2], [True, False]) == [("a", 1, True), ("b", 2, False)]
