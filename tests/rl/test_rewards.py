"""Built-in rewards, and rewards of the user."""

from typing import Any

import PIL.Image
import pytest

from calumma.corpora.still_life import StillLife, Thing
from calumma.errors import ConfigError
from calumma.generate.best_of import RewardInput
from calumma.rl.rewards import REWARDS, load_reward
from tests.rl.runs import brightness


def completion(*parts: str | PIL.Image.Image, **fields: Any) -> RewardInput:
    given: dict[str, Any] = {
        "prompt": "p",
        "reference": (),
        "attributes": {},
        "num_tokens": 4,
        "finish_reason": "stop",
    }
    return RewardInput(parts=parts, **given | fields)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("exact_answer", "Two, circles. ", 1.0),
        ("exact_answer", "two circles there", 0.0),
        ("contains_answer", "There are Two circles!", 1.0),
        ("contains_answer", "There are twotwo circles", 0.0),
    ],
)
def test_answers_are_compared_by_words(name: str, text: str, expected: float) -> None:
    assert REWARDS[name](completion(text, reference=("two circles",))) == expected


def test_the_format_is_that_of_the_reference() -> None:
    image = PIL.Image.new("RGB", (4, 4))
    reward = REWARDS["reference_format"]
    assert reward(completion("a", image, reference=("other", image))) == 1.0
    assert reward(completion(image, "a", reference=("other", image))) == 0.0
    assert reward(completion("a", image, reference=("other", image), finish_reason="length")) == 0.0


def test_shorter_answers_are_better() -> None:
    assert [REWARDS["short_answer"](completion("a", num_tokens=n)) for n in (0, 100, 300)] == [1.0, 0.5, 0.25]


def test_a_still_life_is_scored_by_its_background_things_and_places() -> None:
    red, blue = Thing("circle", "red"), Thing("square", "blue")
    true = StillLife("white", "row", (red, blue)).render()
    reward = REWARDS["still_life"]

    def score(image: PIL.Image.Image) -> float:
        return reward(completion(image, reference=(true,)))

    assert score(true) == 1.0
    assert score(StillLife("white", "row", (blue, red)).render()) == pytest.approx(2 / 3)
    assert score(StillLife("yellow", "row", (red, blue)).render()) == pytest.approx(2 / 3)
    assert score(StillLife("white", "row", (red, red)).render()) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert reward(completion("no image", reference=(true,))) == 0.0
    large, small = (StillLife("white", "single", (blue,), size).render() for size in ("large", "small"))
    assert reward(completion(small, reference=(large,))) == pytest.approx(2 / 3)


def test_a_still_life_without_a_reference_is_scored_by_its_caption() -> None:
    image = StillLife("white", "row", (Thing("circle", "red"), Thing("banana"))).render()
    reward = REWARDS["still_life"]
    scores = [
        reward(completion(image, prompt=f"Draw {caption}."))
        for caption in (
            "a red circle left of a banana on a white background",
            "a red circle left of a banana on a blue background",
            "a blue circle left of a banana",
            "a whale on a blue background",
        )
    ]
    assert scores[0] == 1.0 and scores[3] == 0.0
    assert 1.0 > scores[1] > scores[3] and 1.0 > scores[2] > scores[3]
    assert reward(completion("no image", prompt="Draw a banana.")) == 0.0


def test_a_still_life_needs_a_reference_image() -> None:
    with pytest.raises(ConfigError) as refused:
        REWARDS["still_life"](completion("a", prompt="what is this?", reference=("a circle",)))
    assert str(refused.value) == (
        "reward still_life: the reference answer of 'what is this?' has no image; expected one. "
        "Leave out prompts whose answer is text."
    )


def test_functions_of_the_user_are_loaded_by_name() -> None:
    assert load_reward("tests.rl.runs:brightness") is brightness
    assert load_reward("exact_answer") is REWARDS["exact_answer"]


@pytest.mark.parametrize("name", ["unknown", "no.such.module:f", "tests.rl.runs:missing", "tests.rl.runs"])
def test_unknown_rewards_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_reward(name)
    message = str(refused.value)
    assert message.startswith(f"reward {name!r} cannot be loaded: ")
    assert message.endswith(
        "; expected one of exact_answer, contains_answer, reference_format, short_answer, still_life, or a function "
        "as package.module:function."
    )
