import pytest

from calumma.documents.document import Document, Text
from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.retrieval import nearest_neighbor_accuracy, retrieval, sample_candidates
from tests.evaluate.oracle import LETTERS, oracle_context, oracle_model, plain_image

NAMES = [
    "retrieval_text_given_image",
    "retrieval_text_given_image_unnormalized",
    "retrieval_image_given_text",
    "retrieval_image_given_text_unnormalized",
]


def test_who_knows_finds_every_one() -> None:
    metrics = retrieval(oracle_context(LETTERS, 5.0), EvalConfig())
    assert [metric.name for metric in metrics] == NAMES
    assert [metric.value for metric in metrics] == [1.0] * 4
    assert metrics[0].n == 10
    assert metrics[0].baseline == 0.1


def test_who_knows_nothing_is_right_one_time_in_ten() -> None:
    metrics = retrieval(oracle_context(LETTERS, 0.0), EvalConfig())
    assert [metric.value for metric in metrics] == pytest.approx([0.1] * 4)


def test_the_nearest_neighbor_baseline_uses_training_images_and_captions() -> None:
    # Ten shades with captions of their own, and training images a little off each.
    def pair(number: int, shade: int) -> Document:
        text = Text(f"shade{number} here")
        return Document(id=str(number), content=(text, plain_image((shade, 0, 0))))

    documents = [pair(number, 25 * number) for number in range(10)]
    context = EvalContext(oracle_model(0.0), documents)
    config = EvalConfig(training_documents=[pair(number, 25 * number + 2) for number in range(10)], log_samples=1)
    metrics = retrieval(context, config)
    assert all(f.baselines == {"chance": 0.1, "nearest neighbor": 1.0} for f in metrics)
    assert all(f.baseline == 0.1 for f in metrics)
    caption, image_sample = context.logged_samples
    assert caption.target == ["shade0 here"] == image_sample.prompt
    assert caption.answer[0] == f"{0.0:10.2f}  shade0 here\n" and len(caption.answer) == 10
    assert image_sample.answer[1] == "0.00 " and len(image_sample.answer) == 20
    candidates = sample_candidates([f"{n}" for n in range(10)], 0)
    known = EvalConfig(training_documents=[pair(3, 75)])
    found = nearest_neighbor_accuracy(context.pairs, candidates, known)
    # One caption for all: it shares one word with each, and two with its own.
    assert found["text_given_image"] == pytest.approx((1 + 9 * 0) / 10)
    assert nearest_neighbor_accuracy(context.pairs, candidates, EvalConfig()) == {}


def test_candidates_begin_with_the_own_index_and_have_ten_different_texts() -> None:
    texts = list(LETTERS + "aab" + "klm")
    for own, row in enumerate(sample_candidates(texts, seed=1)):
        assert row[0] == own
        assert len({texts[index] for index in row}) == 10


def test_the_same_seed_draws_the_same_candidates() -> None:
    texts = [*LETTERS, *"klmnop"]
    assert sample_candidates(texts, 1) == sample_candidates(texts, 1) != sample_candidates(texts, 2)


def test_nine_texts_are_too_few() -> None:
    with pytest.raises(EvaluationError, match="retrieval: found 9 different texts among 9 docu"):
        retrieval(oracle_context(LETTERS[:9], 0.0), EvalConfig())
