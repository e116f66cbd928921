"""Log probabilities of generated text tokens, in the formats of OpenAI's API."""

import codecs
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from calumma.generate.model import Model
from calumma.serve.protocol import ChoiceLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from calumma.vocabulary import BEGIN_IMAGE_NAME, EOS_NAME


class TokenLogprobs(NamedTuple):
    """Generated tokens with their log probabilities, one item per token in each list."""

    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    top_logprobs: Sequence[Mapping[int, float]] = ()
    """The most likely allowed tokens, best first."""

    def of_text(self, model: Model) -> Iterator[tuple[int, float, Mapping[int, float]]]:
        """Yield the text tokens."""
        for item in zip(*self, strict=True):
            if item[0] in model.vocabulary.text:
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


class CompletionLogprobsBuilder:
    """Log probabilities of the text tokens of a completion, all at once or as they come."""

    def __init__(self, model: Model, num_logprobs: int) -> None:
        self._model, self._num_logprobs = model, num_logprobs
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def add(self, tokens: TokenLogprobs) -> CompletionLogprobs:
        """Return the log probabilities of more tokens.

        `top_logprobs` has the sampled token too, as in OpenAI's API. A token that is not UTF-8 by
        itself is written as "bytes:\\xe2\\x80".
        """
        made = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        tops: list[dict[str, float]] = []
        for id_, logprob, top in tokens.of_text(self._model):
            made.tokens.append(_name(self._model, id_))
            made.token_logprobs.append(_finite(logprob))
            made.text_offset.append(self._advance(self._model.text.token_bytes(id_)))
            all_ = {**top, id_: logprob}
            tops.append({_name(self._model, i): _finite(p) for i, p in all_.items()})
        made.top_logprobs = tops if self._num_logprobs else None
        return made

    def _advance(self, data: bytes) -> int:
        """Decode the bytes of a token, and return the offset of the character it begins in."""
        begun = self._offset + len(self._utf8.decode(data[:1]))
        offset = begun if self._utf8.getstate()[0] else begun - 1
        self._offset = begun + len(self._utf8.decode(data[1:]))
        return offset


def _describe(model: Model, id_: int, logprob: float) -> dict[str, Any]:
    data = _bytes(model, id_)
    return {"token": data.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(data)}


def _name(model: Model, id_: int) -> str:
    data = _bytes(model, id_)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _bytes(model: Model, id_: int) -> bytes:
    """Return the text of a text token, or the name of a special token."""
    if id_ in model.vocabulary.text:
        return model.text.token_bytes(id_)
    eos = model.vocabulary.eos
    return (EOS_NAME if id_ == eos else BEGIN_IMAGE_NAME).encode()


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return logprob if math.isfinite(logprob) else -9999.0
