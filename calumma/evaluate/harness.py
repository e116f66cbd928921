"""A model as lm-evaluation-harness asks for one, so that its text tasks measure ours.

What is told is what the harness' own class for transformers tells of the same folder: text is
encoded behind begin-of-sequence, image codes cannot come, and what is too long loses its head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from calumma.evaluate.loglikelihood import TokenLogprobs, score_sequences
from calumma.generate.model import Model
from calumma.generate.params import Request, TextSampling
from calumma.generate.request import RequestState

_TokenIds = list[int]

_LOOK_BACK = 64
"""Ids in which a stop text is looked for as they come; it ends with the newest."""

DEFAULT_MAX_NEW_TOKENS = 256
"""Ids written where a task names no number: the harness' own default."""


class HarnessRequest(Protocol):
    """One question of the harness."""

    @property
    def args(self) -> tuple[Any, ...]:
        """What is asked: texts, and how to write."""


class HarnessModel:
    """What the harness calls a language model: three things that it may be asked.

    It is no subclass of the harness' `LM`, so that this module can be imported without the
    harness; `registered` tells the harness that it is one.
    """

    rank = 0
    world_size = 1

    def __init__(
        self, model: Model, *, seed: int = 0, tick: Callable[[int, int], None] | None = None
    ) -> None:
        """Take a model.

        Args:
            model: what is asked.
            seed: of the answers that are drawn by chance; the n-th question has seed + n.
            tick: told how many questions are answered, of how many.
        """
        self.model = model
        self.seed = seed
        self.on_progress = tick or (lambda done, total: None)
        self.device = model.decoder.embedding.weight.device
        self.max_seq_len = model.decoder.config.max_seq_len

    def encode(self, text: str) -> _TokenIds:
        """The ids of a text behind begin-of-sequence."""
        return [self.model.vocabulary.bos, *self.model.text.encode(text)]

    def encode_pair(self, context: str, continuation: str) -> tuple[_TokenIds, _TokenIds]:
        """The ids of a text, and those that its continuation adds.

        Spaces at the end of the context belong to the continuation, whose first word they begin;
        both are encoded as one text.
        """
        kept = context.rstrip()
        if not context:
            return self.encode(""), self.model.text.encode(continuation)
        before = self.encode(kept)
        return before, self.encode(context + continuation)[len(before) :]

    def loglikelihood(self, requests: Sequence[HarnessRequest]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the natural log of its probability, and whether every
        id of the continuation is the likeliest.
        """
        pairs = [self.encode_pair(*request.args[:2]) for request in requests]
        told = self._foretold([before + after for before, after in pairs])
        return [_of_last(each, len(after)) for each, (_, after) in zip(told, pairs, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[HarnessRequest]) -> list[float]:
        """For each (text,): the natural log of its probability, in windows as long as a row.

        As in the harness, the begin-of-sequence that its ids start with is itself foretold from
        one before it; every id is foretold once.
        """
        windows: list[tuple[int, _TokenIds, int]] = []
        for number, request in enumerate(requests):
            ids = self.encode(request.args[0])
            windows += [(number, *window) for window in self._windows(ids)]
        sums = [0.0] * len(requests)
        told = self._foretold([ids for _, ids, _ in windows])
        for (number, _, count), each in zip(windows, told, strict=True):
            sums[number] += _of_last(each, count)[0]
        return sums

    def _windows(self, ids: _TokenIds) -> list[tuple[_TokenIds, int]]:
        """Ids to read, and how many of the last are foretold: at most a row's, at most once."""
        whole = [self.model.vocabulary.bos, *ids]
        first = min(self.max_seq_len, len(ids))
        made = [(whole[: first + 1], first)]
        for start in range(first, len(ids), self.max_seq_len):
            count = min(self.max_seq_len, len(ids) - start)
            made.append((ids[max(0, start + count - self.max_seq_len - 1) : start + count], count))
        return made

    def _foretold(self, sequences: Sequence[_TokenIds]) -> list[TokenLogprobs]:
        # The last id is never read, so one more than a row fits.
        cut = [ids[-(self.max_seq_len + 1) :] for ids in sequences]
        codes = self.model.vocabulary.codes
        return score_sequences(
            self.model.decoder, cut, excluded=codes, on_progress=self.on_progress
        )

    def generate_until(self, requests: Sequence[HarnessRequest]) -> list[str]:
        """For each (context, options): what the model writes, up to the first stop text.

        Options are `until`, `max_gen_toks`, `do_sample`, `temperature` and `top_p`; without
        `do_sample` the likeliest id is taken each time.
        """
        engine = self.model.engine
        asked = [self._request(each, number) for number, each in enumerate(requests)]
        works = engine.submit_all(asked)
        stops = {work: _stops(each.args[1]) for work, each in zip(works, requests, strict=True)}
        finished: set[RequestState] = set()
        for work, _ in engine.stream_tokens(works):
            if (
                stops[work]
                and _until(self._text(work.output_token_ids[-_LOOK_BACK:]), stops[work]) is not None
            ):
                engine.abort(work)
            if work.is_finished and work not in finished:
                finished.add(work)
                self.on_progress(len(finished), len(works))
        answers = [self._text(work.output_token_ids) for work in works]
        cut = (_until(text, stops[work]) for text, work in zip(answers, works, strict=True))
        return [text if short is None else short for text, short in zip(answers, cut, strict=True)]

    def _text(self, ids: _TokenIds) -> str:
        kept = [id_ for id_ in ids if id_ in self.model.vocabulary.text]
        return self.model.text.decode(kept)

    def _request(self, request: HarnessRequest, number: int) -> Request:
        context, options = request.args[:2]
        room = min(int(options.get("max_gen_toks", DEFAULT_MAX_NEW_TOKENS)), self.max_seq_len // 2)
        drawn = bool(options.get("do_sample", False))
        sampling = TextSampling(
            temperature=float(options.get("temperature", 1.0)) if drawn else 0.0,
            top_p=float(options.get("top_p", 1.0)),
            repetition_penalty=1.0,
        )
        return Request(
            prompt_token_ids=tuple(self.encode(context)[-(self.max_seq_len - room) :]),
            max_new_tokens=room,
            seed=self.seed + number,
            text=sampling,
            max_images=0,
        )


def register_harness_model(model: HarnessModel) -> HarnessModel:
    """The model, which the harness then takes for one of its own."""
    from lm_eval.api.model import LM

    LM.register(HarnessModel)
    return model


def _of_last(foretold: TokenLogprobs, count: int) -> tuple[float, bool]:
    if not count:
        return 0.0, True
    return float(foretold.logprobs[-count:].sum()), bool(foretold.is_greedy[-count:].all())


def _stops(options: dict[str, Any]) -> list[str]:
    stops = options.get("until") or []
    return [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]


def _until(text: str, stops: Sequence[str]) -> str | None:
    """A text up to the first of some stops; None where it holds none.

    >>> _until("12. Q: more", ["Q:", ". "]), _until("12", ["Q:"])
    ('12', None)
    """
    found = [text.find(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else None
