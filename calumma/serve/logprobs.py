"""Log probabilities of generated text tokens, in the formats of OpenAI's API."""

import codecs
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from calumma.generate.loglikelihood import SequenceLogprobs
from calumma.generate.model import Model
from calumma.serve.protocol import ChoiceLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob


class TokenLogprobs(NamedTuple):
    """Generated tokens with their log probabilities, one item per token in each list."""

    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    top_logprobs: Sequence[Mapping[int, float]] = ()
    """The most likely allowed tokens, best first."""

    def of_text(self, model: Model, *, with_eos: bool = False) -> Iterator[tuple[int, float, Mapping[int, float]]]:
        """Yield the text tokens."""
        vocabulary = model.vocabulary
        for item in zip(*self, strict=True):
            if item[0] in vocabulary.text or (with_eos and item[0] == vocabulary.eos):
                yield item


def chat_logprobs(model: Model, tokens: TokenLogprobs) -> ChoiceLogprobs:
    """Return the log probabilities of the text tokens of a chat completion."""
    content = [
        TokenLogprob(
            **_describe(model, id_, logprob),
            top_logprobs=[TopLogprob(**_describe(model, *item)) for item in top.items()],
        )
        for id_, logprob, top in tokens.of_text(model)
    ]
    return ChoiceLogprobs(content=content)


def token_id_logprobs(tokens: TokenLogprobs) -> dict[str, Any]:
    """Return the log probabilities of all tokens, image tokens too, as fields next to `token_ids`."""
    top = [[(id_, _finite(logprob)) for id_, logprob in best.items()] for best in tokens.top_logprobs]
    return {"token_logprobs": [_finite(logprob) for logprob in tokens.logprobs], "top_token_logprobs": top}


class CompletionLogprobsBuilder:
    """Log probabilities of the text tokens of a completion, all at once or as they come."""

    def __init__(self, model: Model, num_logprobs: int) -> None:
        self._model, self._num_logprobs = model, num_logprobs
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def add(
        self, tokens: TokenLogprobs, prompt: Sequence[int] = (), scores: SequenceLogprobs | None = None
    ) -> CompletionLogprobs:
        """Return the log probabilities of more tokens.

        `top_logprobs` has the sampled token too, as in OpenAI's API. A token that is not UTF-8 by
        itself is written as "bytes:\\xe2\\x80".

        Args:
            tokens: generated tokens.
            prompt: token ids of the prompt, which is echoed before them.
            scores: of the prompt.
        """
        made = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        tops: list[dict[str, float] | None] = []
        echoed: list[tuple[int, float | None, Mapping[int, float]]] = []
        if scores is not None:
            logprobs = [None, *scores.logprobs[1:].tolist()]
            echoed = list(zip(prompt, logprobs, [{}, *(scores.top_logprobs or [{}] * len(prompt))], strict=False))
        for id_, logprob, top in [*echoed, *tokens.of_text(self._model, with_eos=scores is not None)]:
            made.tokens.append(_name(self._model, id_))
            made.text_offset.append(self._advance(id_))
            made.token_logprobs.append(None if logprob is None else _finite(logprob))
            all_ = {} if logprob is None else {**top, id_: logprob}
            tops.append({_name(self._model, i): _finite(p) for i, p in all_.items()} or None)
        made.top_logprobs = tops if self._num_logprobs else None
        return made

    def _advance(self, id_: int) -> int:
        """Decode the bytes of a token, and return the offset of the character it begins in."""
        if id_ not in self._model.vocabulary.text:
            return self._offset
        data = self._model.text.token_bytes(id_)
        begun = self._offset + len(self._utf8.decode(data[:1]))
        offset = begun if self._utf8.getstate()[0] else begun - 1
        self._offset = begun + len(self._utf8.decode(data[1:]))
        return offset


def _describe(model: Model, id_: int, logprob: float) -> dict[str, Any]:
    data = model.text.token_bytes(id_)  # of a special token: its name
    return {"token": data.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(data)}


def _name(model: Model, id_: int) -> str:
    data = model.text.token_bytes(id_)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return logprob if math.isfinite(logprob) else -9999.0
