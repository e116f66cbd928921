import math

import numpy as np
import pytest

from calumma.documents.document import Document, Text
from calumma.errors import EvaluationError
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.likelihood import derange_texts, likelihood, unigram_bits
from calumma.evaluate.metric import Metric
from tests.evaluate.oracle import LETTERS, VOCABULARY, oracle_context, oracle_model

THREE_BITS = 3 * math.log(2)


def _figures(context: EvalContext, config: EvalConfig | None = None) -> dict[str, Metric]:
    return {metric.name: metric for metric in likelihood(context, config or EvalConfig())}


def test_an_even_model_needs_the_bits_of_the_whole_vocabulary() -> None:
    metrics = _figures(oracle_context("abcd", 0.0))
    bits = math.log2(VOCABULARY.size)
    for name in ("text_bits_per_token", "code_bits_per_token"):
        assert metrics[name].value == pytest.approx(bits)
        assert metrics[name].n == 4
    assert metrics["code_bits_right_minus_shuffled"].value == pytest.approx(0.0)


def test_codes_after_their_caption_by_hand() -> None:
    metrics = _figures(oracle_context("abcd", THREE_BITS))
    total = 8 + VOCABULARY.size - 1
    assert metrics["code_bits_per_token_caption_first"].value == pytest.approx(math.log2(total / 8))
    assert metrics["text_bits_per_token_image_first"].value == pytest.approx(math.log2(total / 8))


def test_the_right_caption_saves_as_many_bits_as_its_logit_has() -> None:
    metric = _figures(oracle_context("abcd", THREE_BITS))["code_bits_right_minus_shuffled"]
    assert metric.value == pytest.approx(-3.0)
    assert metric.interval == pytest.approx((-3.0, -3.0))
    assert metric.baseline == 0.0


def test_the_unigram_on_the_documents_themselves_is_their_entropy() -> None:
    metrics = _figures(oracle_context("abcd", 0.0))
    assert metrics["text_bits_per_token"].baseline == pytest.approx(2.0)
    assert metrics["code_bits_per_token"].baseline == pytest.approx(2.0)
    assert metrics["text_bits_per_token"].note == (
        "8 tokens, pairs in both orders; the baseline is a unigram fitted on these documents themselves"
    )


def test_the_unigram_of_training_counts_adds_one_to_each_id_of_its_kind() -> None:
    counts = np.zeros(20, dtype=np.int64)
    counts[[4, 5, 12]] = 5, 1, 99  # the last is of another kind
    bits, fitted = unigram_bits(np.array([4, 4, 5]), range(4, 8), counts)
    # Among four ids: (5 + 1, 1 + 1, 0 + 1, 0 + 1) of 10.
    assert bits == pytest.approx(-(2 * math.log2(0.6) + math.log2(0.2)) / 3)
    assert fitted == "fitted on training counts, one added"


def test_text_alone_gives_the_text_metric_alone() -> None:
    context = EvalContext(oracle_model(0.0), [Document(id="1", content=(Text("abc"),))])
    assert list(_figures(context)) == ["text_bits_per_token"]


def test_a_document_that_is_too_long_is_cut_to_what_the_model_reads() -> None:
    context = EvalContext(oracle_model(0.0), [Document(id="1", content=(Text("a" * 99),))])
    assert _figures(context)["text_bits_per_token"].note.startswith("63 tokens")


def test_documents_without_any_token_are_refused() -> None:
    context = EvalContext(oracle_model(0.0), [Document(id="1", content=(Text(""),))])
    with pytest.raises(EvaluationError) as caught:
        likelihood(context, EvalConfig())
    assert str(caught.value) == (
        "likelihood: found no token of text or image in 1 document; expected at least one. Give "
        "documents with text or images (--documents)."
    )


@pytest.mark.parametrize("texts", [list(LETTERS), list("aabbcdee"), ["a", "b"], list("aaabcd")])
def test_partners_have_other_texts_and_each_is_used_once(texts: list[str]) -> None:
    for seed in range(5):
        partners = derange_texts(texts, seed)
        assert sorted(partners) == list(range(len(texts)))
        assert all(texts[own] != texts[other] for own, other in enumerate(partners))


def test_a_text_that_most_documents_share_is_refused() -> None:
    with pytest.raises(EvaluationError) as caught:
        derange_texts(list("aaab"), seed=0)
    assert str(caught.value) == (
        "code_bits_right_minus_shuffled: 3 of 4 documents share one text; expected at most half, "
        "so that each can be given another's. Give more varied documents (--documents), or leave "
        "likelihood out."
    )


def test_logged_samples_have_the_order_that_was_scored() -> None:
    context = oracle_context(LETTERS, 0.0)
    likelihood(context, EvalConfig(log_samples=2))
    caption_before, image_before = context.logged_samples
    assert [isinstance(part, str) for part in caption_before.prompt] == [True, False]
    assert [isinstance(part, str) for part in image_before.prompt] == [False, True]
    bits = math.log2(VOCABULARY.size)
    assert caption_before.answer == [
        f"text: {bits:.1f} bits in 1 tokens\n", f"codes: {4 * bits:.1f} bits in 4 tokens\n",
    ]  # fmt: skip
