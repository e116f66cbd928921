"""Rewards of completions: built-in functions and functions of the user.

A reward is a function of a `RewardInput` that returns a number; a larger one is better. It must
depend on nothing else, so that a resumed run repeats the rewards of an undisturbed one.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module

import PIL.Image

from calumma.corpora.still_life import StillLife
from calumma.errors import ConfigError
from calumma.evaluate.still_life_judge import read_still_life
from calumma.evaluate.still_life_scores import caption_agreement
from calumma.generate.best_of import RewardFunction, RewardInput, join_texts


def exact_answer(completion: RewardInput) -> float:
    """Return 1 if the text equals the reference's but for case, spaces and punctuation, else 0."""
    return float(_normalized(completion.text) == _normalized(join_texts(completion.reference)))


def contains_answer(completion: RewardInput) -> float:
    """Return 1 if the words of the reference occur in the text, in their order, else 0."""
    answer = f" {_normalized(join_texts(completion.reference))} "
    return float(answer in f" {_normalized(completion.text)} ")


def reference_format(completion: RewardInput) -> float:
    """Return 1 if texts and images alternate as in the reference and the model has ended, else 0."""
    kinds = [[isinstance(part, str) for part in parts] for parts in (completion.parts, completion.reference)]
    return float(kinds[0] == kinds[1] and completion.finish_reason == "stop")


def short_answer(completion: RewardInput) -> float:
    """Return 1 for an empty completion, 1/2 for 100 tokens, 1/3 for 200, and so on."""
    return 1 / (1 + completion.num_tokens / 100)


def still_life(completion: RewardInput) -> float:
    """Return how much of the reference's still life the first image shows, from 0 to 1.

    The mean of three: the background's color, the things whatever their places, and the things at
    their places and in their size, as `evaluate/still_life_judge.py` reads both images. Without a
    reference, the fraction of facts on which the image and the caption in the prompt agree. 0
    without an image.
    """
    if not completion.reference:
        agreements = [
            caption_agreement(read_still_life(image).scene, completion.prompt) for image in completion.images
        ]
        return agreements[0] if agreements else 0.0
    expected = [part for part in completion.reference if not isinstance(part, str)]
    if not expected:
        raise ConfigError(
            f"reward still_life: the reference answer of {completion.prompt!r} has no image; expected one. "
            "Leave out prompts whose answer is text."
        )
    if not completion.images:
        return 0.0
    reference, image = expected[0].convert("RGB"), completion.images[0]
    true, read = _scene_of(reference.size, reference.tobytes()), read_still_life(image).scene
    background = float(true.background == read.background)
    positions = ([(*position, scene.size) for position in scene.positions] for scene in (true, read))
    return (background + _overlap(true.things, read.things) + _overlap(*positions)) / 3


REWARDS: Mapping[str, RewardFunction] = {
    "exact_answer": exact_answer,
    "contains_answer": contains_answer,
    "reference_format": reference_format,
    "short_answer": short_answer,
    "still_life": still_life,
}
"""Built-in rewards by name."""


def load_reward(name: str) -> RewardFunction:
    """Return a built-in reward, or the function that `package.module:function` names.

    Raises:
        ConfigError: there is none.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, _, function = name.partition(":")
    try:
        found: RewardFunction = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"reward {name!r} cannot be loaded: {error}; expected one of {', '.join(REWARDS)}, or a function as "
            "package.module:function."
        ) from error
    return found


@lru_cache(maxsize=1024)
def _scene_of(size: tuple[int, int], rgb: bytes) -> StillLife:
    """Read a reference, which all completions of its prompt share."""
    return read_still_life(PIL.Image.frombytes("RGB", size, rgb)).scene


def _overlap(expected: Sequence[object], found: Sequence[object]) -> float:
    """Return twice the common items over all items of both."""
    remaining = list(found)
    common = 0
    for item in expected:
        if item in remaining:
            remaining.remove(item)
            common += 1
    return 2 * common / max(1, len(expected) + len(found))


def _normalized(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
