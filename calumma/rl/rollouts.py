"""Rollouts: completions of prompts by the model in training, with their rewards."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev

import PIL.Image

from calumma.documents.document import Document, Text
from calumma.documents.readers import read_documents
from calumma.errors import ConfigError
from calumma.files import fingerprint
from calumma.generate.best_of import RewardFunction, RewardInput, compute_reward
from calumma.generate.engine import Engine
from calumma.generate.grammar import TokenKind
from calumma.generate.output_decoder import OutputDecoder
from calumma.generate.params import EngineConfig, ImageSampling, Request, TextSampling
from calumma.generate.request import RequestState
from calumma.model.decoder import Decoder
from calumma.rl.config_grpo import GRPOConfig
from calumma.rl.policy import replay_kinds
from calumma.shards.encode import DocumentEncoder
from calumma.tokens.folder import Tokenizers
from calumma.vocabulary import Vocabulary

SCALE_EPSILON = 1e-4
"""Added to the standard deviation of a group's rewards."""


@dataclass(frozen=True, kw_only=True)
class RolloutPrompt:
    """A prompt, and what its rewards may look at."""

    token_ids: tuple[int, ...]
    text: str
    reference: Sequence[str | PIL.Image.Image]
    attributes: dict[str, str]


@dataclass(frozen=True)
class RolloutPrompts:
    """All prompts of a run, in memory."""

    items: Sequence[RolloutPrompt]
    anchors: Sequence[RolloutPrompt] = ()
    """Prompts whose completions have no reward."""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all prompts and references."""
        anchors = [("anchor", *_identity(anchor)) for anchor in self.anchors]
        return fingerprint(repr([_identity(item) for item in self.items] + anchors))


def _identity(prompt: RolloutPrompt) -> tuple[object, ...]:
    parts = [part if isinstance(part, str) else part.tobytes() for part in prompt.reference]
    return (prompt.token_ids, parts, sorted(prompt.attributes.items()))


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A completion with its reward."""

    prompt_token_ids: tuple[int, ...]
    token_ids: list[int]

    kinds: list[TokenKind | None]
    """Kind of each generated token; None for tokens that the grammar forced."""

    logprobs: list[float]
    """Log-probabilities by the engine."""

    rewards: tuple[float, ...]
    """By each reward function."""

    advantage: float = 0.0

    is_anchor: bool = False
    """Whether only the KL divergence concerns it; an anchor has no rewards."""


def encode_rollout_prompts(config: GRPOConfig, tokenizers: Tokenizers, max_prompt_length: int) -> RolloutPrompts:
    """Read the prompts with their reference answers, and the anchors.

    Raises:
        ConfigError: a document has no answer, or a prompt is too long.
        DocumentError: there is no document.
    """
    encoder = DocumentEncoder(tokenizers)
    return RolloutPrompts(
        list(_encode_prompts(config.prompts, encoder, max_prompt_length)),
        list(_encode_prompts(config.anchors, encoder, max_prompt_length)) if config.anchors else [],
    )


def _encode_prompts(
    paths: Sequence[Path], encoder: DocumentEncoder, max_prompt_length: int
) -> Iterator[RolloutPrompt]:
    for document in read_documents(paths):
        if not document.messages or document.messages[-1].role != "assistant":
            raise ConfigError(
                f"document {document.id!r} of grpo.prompts does not end with an answer; expected turns whose last one "
                "is the reference. Add it, or leave the document out."
            )
        # The images of the answer are references, not tokens.
        answer = replace(document.messages[-1], parts=(Text("."),))
        (sequence,) = encoder.encode([replace(document, messages=(*document.messages[:-1], answer))])
        begin = _last_answer(sequence.loss_mask)
        if begin > max_prompt_length:
            raise ConfigError(
                f"document {document.id!r} of grpo.prompts has a prompt of {begin} tokens; expected at most "
                f"{max_prompt_length}, the model's length less grpo.max_completion_length. Leave it out."
            )
        yield _prompt(document, tuple(sequence.token_ids[:begin]))


def _last_answer(loss_mask: Sequence[bool]) -> int:
    """Return where the last run of tokens in the loss mask begins."""
    end = max(position for position, counts in enumerate(loss_mask) if counts)
    while end and loss_mask[end - 1]:
        end -= 1
    return end


def _prompt(document: Document, token_ids: tuple[int, ...]) -> RolloutPrompt:
    *before, answer = document.messages
    texts = [part.text for turn in before for part in turn.parts if isinstance(part, Text)]
    reference = [part.text if isinstance(part, Text) else part.open() for part in answer.parts]
    attributes = dict(document.attributes)
    return RolloutPrompt(token_ids=token_ids, text="\n".join(texts), reference=reference, attributes=attributes)


def without_text(prompt: RolloutPrompt, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the begin-of-sequence and the images of a prompt."""
    return tuple(id_ for id_ in prompt.token_ids if id_ == vocabulary.bos or vocabulary.is_image_token(id_))


class RolloutGenerator:
    """Generates completions with the weights in training and scores them."""

    def __init__(
        self, config: GRPOConfig, tokenizers: Tokenizers, rewards: Sequence[RewardFunction], max_model_len: int
    ) -> None:
        """Prepare for the prompts of a run; `max_model_len` is the most tokens of the model."""
        self.config, self.tokenizers, self.rewards = config, tokenizers, rewards
        self.max_model_len = max_model_len
        self.weights = config.reward_weights or (1.0,) * len(rewards)

    def generate(self, decoder: Decoder, prompts: Sequence[RolloutPrompt], seeds: Iterable[int]) -> list[Rollout]:
        """Return `num_generations` rollouts of each prompt in turn, with their advantages.

        Args:
            decoder: not sharded, in evaluation mode.
            prompts: of this rank.
            seeds: one for each completion.
        """
        count = self.config.num_generations
        repeated = [prompt.token_ids for prompt in prompts for _ in range(count)]
        requests = [self._request(prompt, seed) for prompt, seed in zip(repeated, seeds, strict=True)]
        states = self._complete(decoder, requests)
        rollouts: list[Rollout] = []
        for number, prompt in enumerate(prompts):
            rollouts += self._with_advantages(self._scored(prompt, states[number * count : (number + 1) * count]))
        return rollouts

    def generate_anchors(self, decoder: Decoder, prompts: Mapping[int, RolloutPrompt], first: int) -> list[Rollout]:
        """Return one completion of each anchor of a step, without rewards.

        Args:
            decoder: the initial one, not sharded, in evaluation mode.
            prompts: of this rank, by their numbers in the step. Those with an odd number and an image
                in their reference lose their text, as in classifier-free guidance.
            first: seed of number 0.
        """
        requests = [self._request(prompt.token_ids, first + number) for number, prompt in prompts.items()]
        if self.config.modality != "text":
            vocabulary = self.tokenizers.text.vocabulary
            requests = [
                replace(each, prompt_token_ids=without_text(prompt, vocabulary), modality="image", max_images=1)
                if number % 2 and any(not isinstance(part, str) for part in prompt.reference)
                else each
                for each, (number, prompt) in zip(requests, prompts.items(), strict=True)
            ]
        return [self._rollout(state, (), is_anchor=True) for state in self._complete(decoder, requests)]

    def _complete(self, decoder: Decoder, requests: Sequence[Request]) -> list[RequestState]:
        codes = self.tokenizers.image.config.codes_per_image
        config = EngineConfig(compile=False, cuda_graphs=False)
        return Engine(decoder, self.tokenizers.text.vocabulary, codes, config=config).generate(requests)

    def _request(self, prompt: tuple[int, ...], seed: int) -> Request:
        config = self.config
        return Request(
            prompt_token_ids=prompt,
            max_new_tokens=config.max_completion_length,
            seed=seed,
            text=TextSampling(repetition_penalty=1.0, temperature=1.0, top_p=1.0),
            image=ImageSampling(
                guidance_scale=config.guidance_scale, image_guidance_scale=1.0, temperature=1.0, top_p=1.0
            ),
            modality=config.modality,
            max_images=0 if config.modality == "text" else config.max_images,
        )

    def _rollout(self, state: RequestState, rewards: tuple[float, ...], *, is_anchor: bool = False) -> Rollout:
        codes = self.tokenizers.image.config.codes_per_image
        vocabulary = self.tokenizers.text.vocabulary
        fresh = RequestState.from_request(state.request, vocabulary, codes, self.max_model_len)
        return Rollout(
            prompt_token_ids=state.request.prompt_token_ids,
            token_ids=state.output_token_ids,
            kinds=replay_kinds(fresh.grammar, state.output_token_ids),
            logprobs=state.logprobs,
            rewards=rewards,
            is_anchor=is_anchor,
        )

    def _scored(self, prompt: RolloutPrompt, states: Sequence[RequestState]) -> list[Rollout]:
        """Score the completions of a prompt, equal ones once."""
        known: dict[tuple[int, ...], tuple[float, ...]] = {}
        rollouts = []
        for state in states:
            ids = tuple(state.output_token_ids)
            if ids not in known:
                completion = self._completion(prompt, state)
                known[ids] = tuple(compute_reward(reward, completion) for reward in self.rewards)
            rollouts.append(self._rollout(state, known[ids]))
        return rollouts

    def _completion(self, prompt: RolloutPrompt, state: RequestState) -> RewardInput:
        decoder = OutputDecoder(self.tokenizers.text, self.tokenizers.image.decode_image, state.request, 0)
        for id_ in state.output_token_ids:
            decoder.push(id_)
        assert state.finish_reason is not None, "the request is not finished"
        return RewardInput(
            prompt=prompt.text,
            parts=[part for part in decoder.finish() if isinstance(part, str | PIL.Image.Image)],
            reference=prompt.reference,
            attributes=prompt.attributes,
            num_tokens=len(state.output_token_ids),
            finish_reason=state.finish_reason,
        )

    def _with_advantages(self, group: Sequence[Rollout]) -> list[Rollout]:
        totals = [sum(w * r for w, r in zip(self.weights, each.rewards, strict=True)) for each in group]
        scale = pstdev(totals) + SCALE_EPSILON if self.config.scale_rewards else 1.0
        mean = fmean(totals)
        return [
            Rollout(**vars(each) | {"advantage": (total - mean) / scale})
            for each, total in zip(group, totals, strict=True)
        ]
