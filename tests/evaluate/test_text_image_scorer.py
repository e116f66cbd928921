import numpy as np
import pytest
from torch import nn

from calumma.documents.document import Document, Text
from calumma.evaluate.frechet import FrechetFeatures
from calumma.evaluate.text_image_scorer import TextImageScorer
from tests.evaluate.oracle import plain_image

COLORS = {"red": (230, 20, 20), "blue": (20, 20, 230), "green": (20, 230, 20)}


def color_features() -> FrechetFeatures:
    """Return a network whose features are the mean color."""
    return FrechetFeatures(nn.AdaptiveAvgPool2d(1), "mean color")


def colored_documents(count: int) -> list[Document]:
    """Return images of three colors with noise, and their captions."""
    chance = np.random.default_rng(0)
    made = []
    for number in range(count):
        word = list(COLORS)[number % 3]
        red, green, blue = (int(c + chance.integers(-20, 20)) for c in COLORS[word])
        text = f"a {word} thing, number {number // 3}"
        content = (Text(text), plain_image((red, green, blue)))
        made.append(Document(id=str(number), content=content))
    return made


@pytest.fixture(scope="module")
def scorer() -> TextImageScorer:
    made = TextImageScorer.fit(color_features(), colored_documents(60), seed=0)
    assert made is not None
    return made


def test_an_image_fits_the_words_of_its_color_best(scorer: TextImageScorer) -> None:
    images = [plain_image(color).open() for color in COLORS.values()]
    scores = scorer.scores(scorer.image_features(images), [f"a {word} one" for word in COLORS])
    assert scores.shape == (3, 3)
    assert scores.argmax(axis=1).tolist() == [0, 1, 2]
    assert np.abs(scores).max() <= 1 + 1e-9


def test_words_that_all_captions_have_or_one_alone_weigh_nothing(scorer: TextImageScorer) -> None:
    rows = scorer.text_vectors(["a thing, number", "zebra", "a red thing"])
    assert np.linalg.norm(rows, axis=1) == pytest.approx([0.0, 0.0, 1.0])
    assert "red" in scorer.idf and "zebra" not in scorer.idf


def test_it_is_the_same_again_and_too_few_pairs_make_none(scorer: TextImageScorer) -> None:
    again = TextImageScorer.fit(color_features(), colored_documents(60), seed=0)
    assert again is not None and np.array_equal(again.weights, scorer.weights)
    texts = [Document(id="1", content=(Text("no image"),))] * 50
    assert TextImageScorer.fit(color_features(), [*colored_documents(19), *texts], seed=0) is None
