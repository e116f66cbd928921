"""Best of n: several samples of a prompt, and the choice of those with the highest reward.

A reward is a function of a `RewardInput` that returns a number, the larger the better, or one of
the model's own: "likelihood", of the prompt after the output, or "logprob", of the output after the
prompt.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import PIL.Image

from calumma.documents.document import Text
from calumma.errors import CalummaError, GenerationError
from calumma.generate.events import FinishReason, ImageCodes, OutputPart, Sample
from calumma.generate.params import Request
from calumma.generate.user_parts import UserPart

if TYPE_CHECKING:
    from calumma.generate.model import Model


@dataclass(frozen=True, kw_only=True)
class RewardInput:
    """A completion with everything that a reward may look at."""

    prompt: str
    """Text of the prompt; its images are left out."""

    parts: Sequence[str | PIL.Image.Image]
    """Generated texts and images in reading order."""

    reference: Sequence[str | PIL.Image.Image] = ()
    """Parts of the answer that is known to be right, if there is one."""

    attributes: Mapping[str, str] = field(default_factory=dict)
    """Attributes of the document."""

    num_tokens: int
    """Generated tokens."""

    finish_reason: FinishReason
    """Why generation ended."""

    @property
    def text(self) -> str:
        """The generated text."""
        return join_texts(self.parts)

    @property
    def images(self) -> list[PIL.Image.Image]:
        """The generated images."""
        return [part for part in self.parts if not isinstance(part, str)]


RewardFunction = Callable[[RewardInput], float]

ModelReward = Literal["likelihood", "logprob"]
"""Mean log-probability of a token: of the prompt's text, given the output and nothing before it, or
of the output, given the prompt."""

Reward = RewardFunction | ModelReward

MODEL_REWARDS: tuple[ModelReward, ...] = ("likelihood", "logprob")


def best_samples(model: "Model", request: Request, prompt: str, n: int, best_of: int, reward: Reward) -> list[Sample]:
    """Generate `best_of` samples with seeds from the request's on; returns the `n` best, the best first.

    Args:
        model: generates, and scores for its own rewards.
        request: of the first sample.
        prompt: text of the prompt.
        n: samples to return.
        best_of: samples to generate.
        reward: of a sample; equal rewards keep the order of the seeds.

    Raises:
        GenerationError: `best_of` is less than `n`, or the likelihood is not defined.
    """
    if not 1 <= n <= best_of:
        raise GenerationError(f"n={n} and best_of={best_of}; expected at least 1, and n at most best_of.")
    requests = [replace(request, seed=request.seed + number) for number in range(best_of)]
    samples = model.generate_requests(requests)
    if best_of == 1:
        return samples
    rewarded = score_samples(model, prompt, samples, reward)
    return [rewarded[index] for index in best_indices([sample.reward or 0.0 for sample in rewarded], n)]


def best_indices(rewards: Sequence[float], n: int) -> list[int]:
    """Return the indices of the `n` highest rewards, the highest first.

    >>> best_indices([0.5, 1.0, 0.5], 2)
    [1, 0]
    """
    return sorted(range(len(rewards)), key=lambda index: -rewards[index])[:n]


def score_samples(model: "Model", prompt: str, samples: Sequence[Sample], reward: Reward) -> list[Sample]:
    """Return samples of a prompt with their rewards; raises as `prompt_likelihoods` and `compute_reward` do."""
    if reward == "likelihood":
        rewards = prompt_likelihoods(model, prompt, [sample.token_ids for sample in samples])
    elif reward == "logprob":
        rewards = [mean_logprob(sample.logprobs) for sample in samples]
    else:
        rewards = [
            compute_reward(reward, reward_input(prompt, sample.parts, len(sample.token_ids), sample.finish_reason))
            for sample in samples
        ]
    return [replace(sample, reward=float(value)) for sample, value in zip(samples, rewards, strict=True)]


def compute_reward(reward: RewardFunction, completion: RewardInput) -> float:
    """Return the reward of a completion.

    Raises:
        GenerationError: the function fails, or returns no finite number.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    try:
        value = float(reward(completion))
    except CalummaError:
        raise
    except Exception as error:
        raise GenerationError(
            f"reward {name} failed on an output of {completion.num_tokens} tokens: {type(error).__name__}: {error}; "
            "expected a number. Correct the function."
        ) from error
    if not math.isfinite(value):
        raise GenerationError(f"reward {name} returned {value}; expected a finite number. Correct the function.")
    return value


def reward_input(
    prompt: str, parts: Sequence[OutputPart], num_tokens: int, finish_reason: FinishReason
) -> RewardInput:
    """Build the input of a reward without a reference; images that stayed codes are left out."""
    decoded = [part for part in parts if not isinstance(part, ImageCodes)]
    return RewardInput(prompt=prompt, parts=decoded, num_tokens=num_tokens, finish_reason=finish_reason)


def mean_logprob(logprobs: Sequence[float]) -> float:
    """Return the mean log-probability of an output's tokens, 0 for an empty one."""
    return sum(logprobs) / max(1, len(logprobs))


def prompt_likelihoods(
    model: "Model", prompt: str, outputs: Sequence[Sequence[int]], adapter: str = ""
) -> list[float]:
    """Return the mean log-probability of the prompt's tokens after each output, in nats.

    The model reads the output as the beginning of a document, as in pre-training on images with
    their captions. Image codes are excluded.

    Args:
        model: scores the prompt.
        prompt: its text.
        outputs: token ids of each output.
        adapter: name of the adapter to use; empty for the model itself.

    Raises:
        GenerationError: the prompt has no text, or the model reads no sequence of both.
    """
    text, vocabulary = model.text.encode(prompt), model.vocabulary
    if not text:
        raise GenerationError(
            "the prompt has no text whose likelihood could choose between samples; expected some. Name another reward."
        )
    special = (vocabulary.eos, vocabulary.end_turn)
    sequences = [[vocabulary.bos, *(id_ for id_ in ids if id_ not in special), *text] for ids in outputs]
    longest, limit = max(map(len, sequences)), model.decoder.config.max_seq_len
    if longest > limit:
        raise GenerationError(
            f"an output and its prompt have {longest} tokens; expected at most {limit}, the most this model reads. "
            "Name another reward."
        )
    scores = model.prompt_logprobs(sequences, adapter=adapter)
    return [float(score.logprobs[-len(text) :].mean()) for score in scores]


def prompt_text(parts: Sequence[UserPart]) -> str:
    """Return the texts of a prompt, one a line."""
    texts = [part["text"] if isinstance(part, dict) and part.get("type") == "text" else part for part in parts]
    return join_texts([part.text if isinstance(part, Text) else part for part in texts], "\n")


def join_texts(parts: Sequence[object], separator: str = "") -> str:
    """Join the texts among parts."""
    return separator.join(part for part in parts if isinstance(part, str))
