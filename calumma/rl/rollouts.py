"""Rollouts: completions of prompts by the model in training, with their rewards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import PIL.Image

from calumma.documents.document import Document, Text
from calumma.documents.readers import read_documents
from calumma.errors import ConfigError
from calumma.files import fingerprint
from calumma.generate.best_of import RewardFunction, RewardInput
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

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all prompts and references."""
        return fingerprint(repr([_identity(item) for item in self.items]))


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


def encode_rollout_prompts(config: GRPOConfig, tokenizers: Tokenizers, max_prompt_length: int) -> RolloutPrompts:
    """Read documents of turns as prompts with reference answers.

    Raises:
        ConfigError: a document has no answer, or a prompt is too long.
        DocumentError: there is no document.
    """
    encoder, prompts = DocumentEncoder(tokenizers), []
    for document in read_documents(config.prompts):
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
        prompts.append(_prompt(document, tuple(sequence.token_ids[:begin])))
    return RolloutPrompts(prompts)


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
        count, vocabulary = self.config.num_generations, self.tokenizers.text.vocabulary
        requests = [
            self._request(prompt, seed)
            for prompt, seed in zip([p for p in prompts for _ in range(count)], seeds, strict=True)
        ]
        codes = self.tokenizers.image.config.codes_per_image
        engine = Engine(decoder, vocabulary, codes, config=EngineConfig(compile=False, cuda_graphs=False))
        states = engine.generate(requests)
        rollouts: list[Rollout] = []
        for number, prompt in enumerate(prompts):
            known: dict[tuple[int, ...], tuple[float, ...]] = {}
            group = [self._rollout(prompt, state, known) for state in states[number * count : (number + 1) * count]]
            rollouts += self._with_advantages(group)
        return rollouts

    def _request(self, prompt: RolloutPrompt, seed: int) -> Request:
        config = self.config
        return Request(
            prompt_token_ids=prompt.token_ids,
            max_new_tokens=config.max_completion_length,
            seed=seed,
            text=TextSampling(repetition_penalty=1.0, temperature=1.0, top_p=1.0),
            image=ImageSampling(
                guidance_scale=config.guidance_scale, image_guidance_scale=1.0, temperature=1.0, top_p=1.0
            ),
            modality=config.modality,
            max_images=0 if config.modality == "text" else config.max_images,
        )

    def _rollout(
        self, prompt: RolloutPrompt, state: RequestState, known: dict[tuple[int, ...], tuple[float, ...]]
    ) -> Rollout:
        """Score a completion; `known` are the rewards of the prompt's completions so far."""
        tokenizers, request = self.tokenizers, state.request
        codes = tokenizers.image.config.codes_per_image
        fresh = RequestState.from_request(request, tokenizers.text.vocabulary, codes, self.max_model_len)
        ids = tuple(state.output_token_ids)
        if ids not in known:
            completion = self._completion(prompt, state)
            known[ids] = tuple(float(reward(completion)) for reward in self.rewards)
        return Rollout(
            prompt_token_ids=request.prompt_token_ids,
            token_ids=state.output_token_ids,
            kinds=replay_kinds(fresh.grammar, state.output_token_ids),
            logprobs=state.logprobs,
            rewards=known[ids],
        )

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
