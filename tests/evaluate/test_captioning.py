import pytest

from calumma.documents.document import Document, Text
from calumma.errors import EvaluationError
from calumma.evaluate.captioning import (
    caption_metrics,
    captioning,
    contains_phrase,
    generate_captions,
    named_attributes,
    nearest_captions,
)
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.generate.model import Model
from tests.evaluate.oracle import oracle_context, plain_image


def test_only_whole_words_count() -> None:
    assert contains_phrase("An ice cream on a Red ground", "ice cream")
    assert contains_phrase("red.", "red")
    assert not contains_phrase("bored", "red")
    assert not contains_phrase("anything", "")


def test_shares_are_of_all_words_and_of_each_kind() -> None:
    known = [{"thing": "cat", "ground": "red"}, {"thing": "dog"}]
    written = ["a cat on a blue ground", "a dog"]
    nearest = ["a dog on a red ground", "a cat"]
    beside = {"nearest image's": nearest, "another image's caption": ["", ""]}
    every, ground, thing = caption_metrics(known, written, beside, seed=0)
    assert every.baselines == {"nearest image's": pytest.approx(1 / 3), "another image's caption": 0.0}
    assert (every.name, every.n) == ("caption_attributes_accuracy", 2)
    assert (every.value, every.baseline) == pytest.approx((2 / 3, 1 / 3))
    assert (ground.name, ground.value, ground.baseline, ground.n) == (
        "caption_ground_accuracy", 0.0, 1.0, 1,
    )  # fmt: skip
    assert (thing.value, thing.baseline, thing.n) == (1.0, 0.0, 2)


def test_without_training_documents_there_is_no_baseline() -> None:
    metric = caption_metrics([{"thing": "cat"}], ["a cat"], {}, seed=0)[0]
    assert metric.baseline is None
    assert metric.note == "1 known words, greedy captions"


def test_the_nearest_caption_is_that_of_the_nearest_image() -> None:
    context = oracle_context("ab", 0.0)  # both images are red
    training = [
        Document(id="1", content=(Text("blue one"), plain_image((0, 0, 255)))),
        Document(id="2", content=(plain_image((250, 10, 0)), Text("red one"))),
        Document(id="3", content=(Text("no image"),)),
    ]
    assert nearest_captions(context.pairs, training) == ["red one", "red one"]


def test_known_words_are_those_that_the_caption_names(model: Model) -> None:
    document = Document(
        id="1",
        content=(Text("a red cat"), plain_image()),
        attributes={"thing": "cat", "ground": "red", "licence": "mine"},
    )
    [pair] = EvalContext(model, [document]).pairs
    assert named_attributes(pair) == {"thing": "cat", "ground": "red"}


def test_captions_are_written_greedily_and_do_not_depend_on_the_batch(model: Model, scenes: list[Document]) -> None:
    context = EvalContext(model, scenes[:4])
    # The token limit follows from the longest caption: that pair is also captioned alone.
    longest = max(range(4), key=lambda index: len(context.pairs[index].text_ids))
    together = generate_captions(context, context.pairs, EvalConfig())
    alone = generate_captions(context, [context.pairs[longest]], EvalConfig(seed=9))
    assert [together[longest]] == alone


def test_documents_without_named_attributes_are_refused() -> None:
    with pytest.raises(EvaluationError) as caught:
        captioning(oracle_context("ab", 0.0), EvalConfig())
    assert str(caught.value) == (
        "captioning: found no attribute named in the texts of 2 pairs; expected attributes such as "
        '"thing" or "ground" whose words occur in the caption. Give such documents (--documents), '
        "or leave this task out."
    )


def test_training_documents_without_images_are_refused() -> None:
    with pytest.raises(EvaluationError) as caught:
        nearest_captions(oracle_context("a", 0.0).pairs, [Document(id="1", content=(Text("a"),))])
    assert str(caught.value) == (
        "captioning: found no text with an image among 1 training documents; expected at least "
        "one, for the baseline. Give others, or leave --train out."
    )
