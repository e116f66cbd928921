from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest

from calumma.documents.document import Document
from calumma.evaluate import text_to_image as module
from calumma.evaluate.context import EvalConfig, EvalContext
from calumma.evaluate.frechet import FrechetFeatures
from calumma.evaluate.text_to_image import (
    NO_SCORER_FEATURES,
    NO_SCORER_PAIRS,
    alignment_metrics,
    fit_scorer,
    select_pairs,
    text_to_image,
)
from calumma.generate.model import Model
from tests.evaluate.test_text_image_scorer import color_features, colored_documents


@pytest.fixture
def color_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrechetFeatures, "load", lambda name: color_features())


def _copies(documents: list[Document]) -> Any:
    own = {document.text: document.images[0].open() for document in documents}

    def drawn(model: Model, captions: list[str], config: EvalConfig) -> list[PIL.Image.Image]:
        return [own[caption] for caption in captions]

    return drawn


@pytest.mark.usefixtures("color_network")
def test_copies_of_the_references_match_them_best(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = colored_documents(70)
    monkeypatch.setattr(module, "generate_images", _copies(documents))
    context = EvalContext(model, documents)
    config = EvalConfig(
        feature_network="colors", training_documents=colored_documents(40), max_prompts=66, log_samples=1
    )
    fits, like, frechet = text_to_image(context, config)
    assert (like.name, like.value, like.n) == ("image_matches_reference", 1.0, 66)
    assert set(like.baselines) == {"chance", "nearest caption's image"}
    assert fits.value > 0.2  # one of three colors, of which ten candidates have three or four
    assert f"the reference images get {fits.value:.3f}" in fits.note
    assert fits.baselines["nearest caption's image"] == pytest.approx(fits.value, abs=0.2)
    assert (frechet.name, frechet.unit, frechet.interval) == ("generation_fd", "mean color", None)
    assert frechet.value == pytest.approx(0.0, abs=1e-9)
    assert frechet.baseline is not None and frechet.baseline >= 0
    assert context.logged_samples[0].task == "text_to_image"
    assert context.skipped == []


@pytest.mark.usefixtures("color_network")
def test_without_training_pairs_only_references_are_compared(model: Model, scenes: list[Document]) -> None:
    context = EvalContext(model, scenes)
    metrics = text_to_image(context, EvalConfig(feature_network="colors", max_prompts=10))
    assert [(metric.name, metric.n) for metric in metrics] == [("image_matches_reference", 10)]
    assert metrics[0].baselines == {"chance": 0.1}
    assert context.skipped == [NO_SCORER_PAIRS, "generation_fd: 10 images; expected at least 64."]


def test_without_features_nothing_is_generated_and_the_reason_is_reported(
    model: Model, scenes: list[Document]
) -> None:
    context = EvalContext(model, scenes)
    assert text_to_image(context, EvalConfig()) == []
    assert fit_scorer(context, EvalConfig()) is None
    assert context.skipped == [NO_SCORER_FEATURES]


def test_likeness_by_hand() -> None:
    # Ten images on a circle: ours are their neighbors' copies, but for the first.
    angles = np.arange(10) * 2 * np.pi / 10
    own = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ours = np.roll(own, 1, axis=0)
    ours[0] = own[0]

    class Named:
        def __init__(self, text: str) -> None:
            self.text = text

    pairs: Any = [Named(str(number)) for number in range(10)]
    [metric] = alignment_metrics(pairs, ours, own, None, None)
    assert (metric.value, metric.n) == (0.1, 10)


def test_selected_pairs_have_ten_different_texts(model: Model) -> None:
    documents = colored_documents(30)
    twice = [replace(documents[0], id=f"again-{n}") for n in range(60)]
    pairs = EvalContext(model, [*twice, *documents[:12]]).pairs
    picked = select_pairs(pairs, EvalConfig(max_prompts=10))
    assert len(picked) == 10 and len({pair.text for pair in picked}) == 10
