from typing import Any

import numpy as np
import PIL.Image
import pytest

from calumma.documents.document import Document, Image, Text, Turn
from calumma.errors import EvaluationError
from calumma.evaluate import interleaved as module
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.frechet import FrechetFeatures
from calumma.evaluate.interleaved import (
    InterleavedPrompt,
    generate_interleaved,
    image_prompt_match,
    interleaved,
    last_exchange,
    layout_metrics,
    modality_sequence,
)
from calumma.evaluate.text_image_scorer import TextImageScorer
from calumma.generate.model import Model
from calumma.tokens.sequence import encode_turns
from tests.evaluate.oracle import plain_image
from tests.evaluate.test_text_image_scorer import COLORS, color_features, colored_documents
from tests.images import png

IMAGE = PIL.Image.new("RGB", (4, 4))


def _conversation(number: int, expected: tuple[Text | Image, ...]) -> Document:
    turns = (Turn("user", (Text(f"ask {number}"),)), Turn("assistant", expected))
    return Document(id=str(number), messages=turns)


def _sample(*parts: str | PIL.Image.Image, ended: bool = True) -> Any:
    class Answer:
        finish_reason = "stop" if ended else "length"

    made: Any = Answer()
    made.parts = list(parts)
    return made


def test_the_make_up_is_compared_with_what_was_asked_by_hand() -> None:
    words, image = Text("words"), plain_image()
    prompts = [InterleavedPrompt((Turn("user", (Text("ask"),)),), expected) for expected in
             ((words, image), (words, image), (words,), (image, words, image))]  # fmt: skip
    samples = [
        _sample("a ", "b", IMAGE),  # as prompts
        _sample(IMAGE, "words"),  # the other way round
        _sample("words", IMAGE, ended=False),  # a image where none is prompts for
        _sample("words"),  # none where two are
    ]
    metrics = {metric.name: metric for metric in layout_metrics(prompts, samples)}
    shares = {name: metric.value for name, metric in metrics.items()}
    assert shares == {
        "interleaved_image_presence_accuracy": 2 / 4,
        "interleaved_image_count_accuracy": 2 / 4, "interleaved_order_accuracy": 1 / 4,
        "interleaved_image_recall": pytest.approx(2 / 3),
        "interleaved_image_specificity": 0.0, "interleaved_stop_rate": 3 / 4,
    }  # fmt: skip
    assert metrics["interleaved_image_presence_accuracy"].baseline == 3 / 4
    assert metrics["interleaved_order_accuracy"].baselines == {"most common reference": 2 / 4}
    assert metrics["interleaved_image_recall"].n == 3


def test_texts_in_a_row_are_one_and_blank_ones_are_none() -> None:
    assert modality_sequence([Text("a"), "b", IMAGE, "\n ", IMAGE, Text("c")]) == (
        "text", "image", "image", "text",
    )  # fmt: skip


def test_the_last_answer_is_the_reference() -> None:
    first = (Turn("user", (Text("a"),)), Turn("assistant", (Text("b"),)))
    last = (Turn("user", (Text("c"), plain_image())), Turn("assistant", (Text("d"),)))
    found = last_exchange(Document(id="1", messages=(*first, *last)))
    assert found is not None
    assert (found.text, found.reference) == ("a b c", (Text("d"),))
    assert last_exchange(Document(id="2", messages=first[:1])) is None
    assert last_exchange(Document(id="3", content=(Text("a"),))) is None
    assert last_exchange(Document(id="4", messages=(first[0], first[1], first[1]))) is None


def test_a_conversation_is_asked_turn_by_turn_with_its_images_as_in_fine_tuning(model: Model) -> None:
    wide = Image(data=png(1, 32, 16))
    turns = (
        Turn("user", (Text("a"), wide)), Turn("assistant", (wide,)), Turn("user", (Text("b"),)),
    )  # fmt: skip
    document = Document(id="1", messages=(*turns, Turn("assistant", (Text("c"),))))
    prompts = [each for each in [last_exchange(document)] if each]
    [sample] = generate_interleaved(model, prompts, EvalConfig())
    codes = [model.encode_image(wide.open(), resize_mode=mode) for mode in ("pad", "crop")]
    assert sample.prompt_token_ids == encode_turns(
        [("user", ["a", codes[0]]), ("assistant", [codes[1]]), ("user", ["b"])], model.text
    )


def test_conversations_longer_than_the_context_are_skipped_and_reported(model: Model) -> None:
    long = _conversation(1, (Text("?" * 200),))
    context = EvalContext(model, [long, *(_conversation(n, (Text("words"),)) for n in range(3))])
    metrics = interleaved(context, EvalConfig())
    assert metrics[0].n == 3
    assert context.skipped == ["interleaved: 1 of 4 conversations, which are longer than the model's max_seq_len."]


def test_a_real_model_is_asked_and_its_answers_are_shown(model: Model) -> None:
    documents = [_conversation(n, (Text("words"), plain_image()) if n % 2 else (Text("words"),))
                 for n in range(6)]  # fmt: skip
    context = EvalContext(model, documents)
    metrics = interleaved(context, EvalConfig(log_samples=2, max_prompts=4))
    assert {metric.name: metric.n for metric in metrics}["interleaved_image_presence_accuracy"] == 4
    assert [shown.task for shown in context.logged_samples] == ["interleaved"] * 2
    prompts = [each for document in documents if (each := last_exchange(document))]
    one, other = (generate_interleaved(model, prompts[:2], EvalConfig(seed=3)) for _ in range(2))
    assert [sample.token_ids for sample in one] == [sample.token_ids for sample in other]


def test_images_are_on_topic_when_they_fit_their_own_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = TextImageScorer.fit(color_features(), colored_documents(60), seed=0)
    assert scorer is not None
    red = PIL.Image.new("RGB", (8, 8), COLORS["red"])
    texts = ["a red thing", *(f"a blue thing, number {n}" for n in range(9))]
    metric = image_prompt_match([(text, red) for text in texts], scorer)
    assert (metric.value, metric.n, metric.baselines) == (0.1, 10, {"chance": 0.1})


def test_the_scorer_is_asked_where_ten_different_prompts_drew(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrechetFeatures, "load", lambda name: color_features())
    documents = [_conversation(n, (plain_image(),)) for n in range(12)]

    def generate(model: Model, prompts: list[InterleavedPrompt], config: EvalConfig) -> list[Any]:
        return [_sample(IMAGE) for _ in prompts]

    monkeypatch.setattr(module, "generate_interleaved", generate)
    config = EvalConfig(feature_network="colors", training_documents=colored_documents(30))
    metrics = interleaved(EvalContext(model, documents), config)
    assert metrics[-1].name == "interleaved_image_matches_prompt"
    assert np.isfinite(metrics[-1].value)


def test_documents_without_answers_are_refused(model: Model) -> None:
    with pytest.raises(EvaluationError) as caught:
        interleaved(EvalContext(model, [Document(id="1", content=(Text("a"),))]), EvalConfig())
    assert str(caught.value) == (
        "interleaved: found no conversation with an answer among 1 document; expected documents "
        "with turns. Give such documents (--documents), or leave this task out."
    )
