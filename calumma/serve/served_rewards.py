"""Rewards that choose the best of several choices: those that the server's operator has named."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import PIL.Image

from calumma.documents.scorers import load_scorer
from calumma.generate.best_of import MODEL_REWARDS, Reward, RewardInput, mean_logprob, prompt_likelihoods, reward_input
from calumma.generate.events import FinishReason
from calumma.generate.model import Model
from calumma.serve.api_errors import APIError

if TYPE_CHECKING:
    from calumma.serve.response_stream import CompletedOutput

DEFAULT_REWARDS: Mapping[str, Reward] = {"logprob": "logprob"}
"""The reward of OpenAI's `best_of`, which costs nothing."""


def load_served_rewards(names: Mapping[str, str]) -> dict[str, Reward]:
    """Load the rewards of a server by the names that requests give.

    Args:
        names: "likelihood", or `package.module:function`, by name.

    Raises:
        ConfigError: a function cannot be imported.
    """
    own: dict[str, Reward] = {reward: reward for reward in MODEL_REWARDS}
    return dict(DEFAULT_REWARDS) | {name: own.get(path) or load_scorer(path) for name, path in names.items()}


def require_reward(name: str, rewards: Mapping[str, Reward]) -> None:
    """Raise `APIError` unless a reward of that name is served."""
    if name not in rewards:
        message = f"no reward of that name is served here; expected {' or '.join(map(repr, rewards))}."
        raise APIError(400, message, "invalid_value", param="reward")


def score_outputs(
    model: Model, reward: Reward, adapter: str, prompts: Sequence[list[int]], outputs: Sequence["CompletedOutput"]
) -> list[float]:
    """Compute the reward of each output; the outputs of a prompt are consecutive.

    A content filter's output has no parts after the blocked one, and gets its reward as it is.

    Raises:
        GenerationError: the likelihood of a prompt is not defined, or the backend cannot score it.
    """
    if reward == "logprob":
        return [mean_logprob(output.finished.tokens.logprobs) for output in outputs]
    rewards: list[float] = []
    count = len(outputs) // len(prompts)
    for number, prompt in enumerate(prompts):
        text = model.text.decode([id_ for id_ in prompt if id_ in model.vocabulary.text])
        own = outputs[number * count : (number + 1) * count]
        if reward == "likelihood":
            rewards += prompt_likelihoods(model, text, [each.finished.tokens.token_ids for each in own], adapter)
        else:
            rewards += [reward(_reward_input(text, each)) for each in own]
    return rewards


def _reward_input(prompt: str, output: "CompletedOutput") -> RewardInput:
    parts = [PIL.Image.open(io.BytesIO(part)) if isinstance(part, bytes) else part for part in output.parts]
    reason: FinishReason = "length" if output.finished.reason == "length" else "stop"
    return reward_input(prompt, parts, len(output.finished.tokens.token_ids), reason)
