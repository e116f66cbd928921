"""An adapter of our model to lm-evaluation-harness, so that its text tasks measure it.

The results are those of the harness' own class for transformers on the same folder: text is encoded
after begin-of-sequence, image codes are excluded, and inputs that are too long are truncated on the
left.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from calumma.errors import EvaluationError
from calumma.generate.loglikelihood import SequenceLogprobs, score_sequences
from calumma.generate.model import Model
from calumma.generate.params import Request, TextSampling

_TokenIds = list[int]

DEFAULT_MAX_NEW_TOKENS = 256
"""New tokens where a task sets no limit: the harness' own default."""


class HarnessRequest(Protocol):
    """One request of the harness (its `Instance`)."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The request's arguments: texts, and generation options."""


class HarnessModel:
    """The three request types of the harness' `LM`, answered by our model.

    It is no subclass of `LM`, so that this module can be imported without the harness;
    `register_harness_model` registers it as one.
    """

    rank = 0
    world_size = 1

    def __init__(self, model: Model, *, seed: int = 0, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Wrap a model.

        Args:
            model: the model under evaluation.
            seed: seed of sampled answers; the n-th request uses seed + n.
            on_progress: called with the number of requests that are done, and of all.
        """
        self.model = model
        self.seed = seed
        self.on_progress = on_progress or (lambda done, total: None)
        self.device = model.decoder.embedding.weight.device
        self.max_seq_len = model.decoder.config.max_seq_len

    def encode(self, text: str) -> _TokenIds:
        """Return the token ids of a text after begin-of-sequence."""
        return [self.model.vocabulary.bos, *self.model.text.encode(text)]

    def encode_pair(self, context: str, continuation: str) -> tuple[_TokenIds, _TokenIds]:
        """Return the token ids of a context, and those that its continuation adds.

        Both are encoded as one text; trailing spaces of the context belong to the continuation. A
        continuation that merges into the last token of the context adds no token at the end: then
        it is scored with that token, after the longest common beginning of both.

        Raises:
            EvaluationError: the continuation is empty, so there is nothing to score.
        """
        if not context:
            context_ids, both = self.encode(""), self.encode(continuation)
        else:
            context_ids, both = self.encode(context.rstrip()), self.encode(context + continuation)
        if len(both) <= len(context_ids):
            differs = (n for n, pair in enumerate(zip(context_ids, both, strict=False))
                       if pair[0] != pair[1])  # fmt: skip
            context_ids = context_ids[: next(differs, len(both))]
        if len(both) == len(context_ids):
            raise EvaluationError(
                f"a continuation of {context!r} is empty ({continuation!r}); expected text to "
                "score. Fix the answer choices of the task."
            )
        # The harness keeps the ids of the context alone, even if `both` begins otherwise.
        return context_ids, both[len(context_ids) :]

    def loglikelihood(self, requests: Sequence[HarnessRequest]) -> list[tuple[float, bool]]:
        """Score each (context, continuation): its natural-log probability, and if it is greedy."""
        pairs = [self.encode_pair(*request.args[:2]) for request in requests]
        scored = self._score([context + continuation for context, continuation in pairs])
        return [_last_tokens(each, len(continuation)) for each, (_, continuation) in zip(scored, pairs, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[HarnessRequest]) -> list[float]:
        """Score each (text,): its natural-log probability, in windows of `max_seq_len`.

        As in the harness, the begin-of-sequence at the start is itself scored after another one;
        every token is scored once.
        """
        windows: list[tuple[int, _TokenIds, int]] = []
        for number, request in enumerate(requests):
            ids = self.encode(request.args[0])
            windows += [(number, *window) for window in self._windows(ids)]
        sums = [0.0] * len(requests)
        scored = self._score([ids for _, ids, _ in windows])
        for (number, _, count), each in zip(windows, scored, strict=True):
            sums[number] += _last_tokens(each, count)[0]
        return sums

    def _windows(self, ids: _TokenIds) -> list[tuple[_TokenIds, int]]:
        """Return windows of token ids, each with the number of last tokens that it scores."""
        first = min(self.max_seq_len, len(ids))
        windows = [([self.model.vocabulary.bos, *ids][: first + 1], first)]
        for start in range(first, len(ids), self.max_seq_len):
            count = min(self.max_seq_len, len(ids) - start)
            end = start + count
            windows.append((ids[max(0, end - self.max_seq_len - 1) : end], count))
        return windows

    def _score(self, sequences: Sequence[_TokenIds]) -> list[SequenceLogprobs]:
        # The last token is never read, so max_seq_len + 1 tokens fit.
        truncated = [ids[-(self.max_seq_len + 1) :] for ids in sequences]
        return score_sequences(
            self.model.decoder, truncated, excluded=self.model.vocabulary.codes, on_progress=self.on_progress
        )

    def generate_until(self, requests: Sequence[HarnessRequest]) -> list[str]:
        """Generate text for each (context, options), up to the first stop string.

        Options are `until`, `max_gen_toks`, `do_sample`, `temperature` and `top_p`; without
        `do_sample`, decoding is greedy.
        """
        samples = self.model.generate_requests(
            [self._request(each, n) for n, each in enumerate(requests)], on_progress=self.on_progress
        )
        return ["".join(part for part in s.parts if isinstance(part, str)) for s in samples]

    def _request(self, request: HarnessRequest, number: int) -> Request:
        context, options = request.args[:2]
        max_new_tokens = int(options.get("max_gen_toks", DEFAULT_MAX_NEW_TOKENS))
        max_new_tokens = min(max_new_tokens, self.max_seq_len // 2)
        do_sample = bool(options.get("do_sample", False))
        sampling = TextSampling(
            temperature=float(options.get("temperature", 1.0)) if do_sample else 0.0,
            top_p=float(options.get("top_p", 1.0)),
            repetition_penalty=1.0,
        )
        return Request(
            prompt_token_ids=tuple(self.encode(context)[-(self.max_seq_len - max_new_tokens) :]),
            max_new_tokens=max_new_tokens,
            seed=self.seed + number,
            text=sampling,
            max_images=0,
            stop=_stop_strings(options),
        )


def register_harness_model(model: HarnessModel) -> HarnessModel:
    """Register `HarnessModel` as a subclass of the harness' `LM` and return the model."""
    from lm_eval.api.model import LM

    LM.register(HarnessModel)
    return model


def _last_tokens(scored: SequenceLogprobs, count: int) -> tuple[float, bool]:
    """Sum the log-probabilities of the last tokens, and check that all are greedy."""
    return float(scored.logprobs[-count:].sum()), bool(scored.is_greedy[-count:].all())


def _stop_strings(options: dict[str, Any]) -> tuple[str, ...]:
    stops = options.get("until") or []
    return tuple(stop for stop in ([stops] if isinstance(stops, str) else stops) if stop)
