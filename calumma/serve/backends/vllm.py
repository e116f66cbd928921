"""Engines of others behind our API: they choose ids, and we read prompts and decode pictures.

`FleetLive` has the face of `calumma.generate.async_engine.Live`. Each request goes, in ids, to one of
several servers with vLLM's completions API, which stream back ids; those become text and pictures
here. Our grammar runs inside the engine (`calumma/serve/backends/vllm_plugin.py`), and is checked again here: an
engine that was started without it is told of in one line.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from calumma.errors import ConfigError
from calumma.generate.async_engine import RequestOutputStream
from calumma.generate.model import Model
from calumma.generate.params import EngineStats, Request
from calumma.generate.request import RequestState
from calumma.serve.api_errors import APIError, server_stopping
from calumma.serve.backends.vllm_plugin import without_guidance

_SECONDS = 600.0
"""For how long an engine may say nothing."""


class VLLMBackend:
    """Hands requests to engines in turn."""

    def __init__(self, model: Model, urls: Sequence[str], name: str) -> None:
        """Look at the addresses; nobody is asked yet.

        Args:
            model: whose tokenizers are used.
            urls: of servers, such as http://engine-1:8000.
            name: what they call the model.

        Raises:
            ConfigError: an address is no URL of a server.
        """
        self.model, self.name = model, name
        self.urls = itertools.cycle([_require_url(url) for url in urls])
        self.error: BaseException | None = None
        self._open: dict[RequestOutputStream, threading.Thread] = {}
        self._closed = False
        self._changing = threading.Lock()

    @property
    def load(self) -> EngineStats:
        """Requests under way; what the engines' caches hold only they know."""
        count = len(self._open)
        return EngineStats(
            num_running=count,
            num_waiting=0,
            num_sequences=count,
            num_reserved_tokens=0,
            max_cached_tokens=0,
        )

    def take(self, request: Request, codes_between: int | None = None) -> RequestOutputStream:
        """Hand in a request, which is answered without guidance.

        Raises:
            GenerationError: it can never be answered.
            Refusal: this is closed.
        """
        request = without_guidance(request)
        config = self.model.decoder.config
        codes = self.model.image.config.codes_per_image
        work = RequestState.from_request(request, self.model.vocabulary, codes, config.max_seq_len)
        talk = _Talk(next(self.urls), _body(request, work, self.name))
        answer = RequestOutputStream(
            self.model, work, self.model.output_decoder(request, codes_between), talk.cancel
        )
        thread = threading.Thread(target=self._follow, args=(talk, work, answer), daemon=True)
        with self._changing:
            if self._closed:
                raise server_stopping()
            self._open[answer] = thread
        thread.start()
        return answer

    def _follow(self, talk: _Talk, work: RequestState, answer: RequestOutputStream) -> None:
        error: BaseException | None = None
        try:
            for id_, logprob in () if work.is_finished else talk.ids():
                if work.is_finished or not work.grammar.allows(id_):
                    raise _bad_engine(talk.url, f"chose id {id_}, which may not come there")
                work.append_token(id_, logprob)
                answer.put(id_)
        except (OSError, ValueError, LookupError, http.client.HTTPException) as reason:
            if not talk.cancelled:
                error = _bad_engine(talk.url, f"gave no answer ({type(reason).__name__})")
        except APIError as refusal:
            error = refusal
        finally:
            if not work.is_finished:
                work.finish(cancelled=talk.cancelled)
            answer.finish(error)
            with self._changing:
                del self._open[answer]

    def close(self, *, finish: bool = True) -> None:
        """Take no more requests; wait for what is under way, or cancel it."""
        with self._changing:
            self._closed = True
            left = dict(self._open)
        for answer, thread in left.items():
            if not finish:
                answer.cancel()
            thread.join()


def _body(request: Request, work: RequestState, name: str) -> dict[str, Any]:
    """What vLLM's completions API is asked. Its sampling has one temperature: that of text."""
    rule = request.text
    return {
        "model": name,
        "prompt": list(request.prompt_token_ids),
        "max_tokens": work.grammar.max_remaining_tokens,
        "seed": request.seed,
        "temperature": rule.temperature,
        "top_p": rule.top_p,
        "top_k": rule.top_k,
        "min_p": rule.min_p,
        "repetition_penalty": rule.repetition_penalty,
        "stream": True,
        "logprobs": 0,
        "return_token_ids": True,
        "vllm_xargs": {
            "calumma_modality": request.modality,
            "calumma_max_images": request.max_images,
        },
    }


class _Talk:
    """One request to one engine."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        self.url, self.body = url, body
        self.cancelled = False
        parts = urlsplit(url)
        kinds: dict[str, Callable[..., http.client.HTTPConnection]] = {
            "http": http.client.HTTPConnection,
            "https": http.client.HTTPSConnection,
        }
        self.path = f"{parts.path.rstrip('/')}/v1/completions"
        self.line = kinds[parts.scheme](parts.netloc, timeout=_SECONDS)
        self.socket: socket.socket | None = None

    def ids(self) -> Iterator[tuple[int, float]]:
        """The ids that the engine chooses, each with its logprob."""
        try:
            self.line.connect()
            self.socket = self.line.sock
            head = {"Content-Type": "application/json"}
            self.line.request("POST", self.path, json.dumps(self.body), head)
            with self.line.getresponse() as response:
                if response.status != 200:
                    raise _bad_engine(self.url, f"answers with status {response.status}")
                for line in response:
                    if self.cancelled or line.strip() == b"data: [DONE]":
                        return
                    if line.startswith(b"data: "):
                        yield from _chosen(json.loads(line[6:]))
        finally:
            self.line.close()

    def cancel(self) -> None:
        """Hang up: the engine then ends the request. Any thread may."""
        self.cancelled = True
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)


def _chosen(chunk: dict[str, Any]) -> Iterator[tuple[int, float]]:
    for choice in chunk["choices"][:1]:
        ids = choice.get("token_ids") or []
        told = (choice.get("logprobs") or {}).get("token_logprobs") or []
        for place, id_ in enumerate(ids):
            yield id_, float(told[place]) if place < len(told) and told[place] else 0.0


def _bad_engine(url: str, what: str) -> APIError:
    return APIError(
        502,
        f"the engine at {urlsplit(url).netloc} {what}; expected ids by our grammar. Start it with "
        "--logits-processors calumma.serve.backends.vllm_plugin:GrammarProcessor, and see its log.",
        "engine_failed",
    )


def _require_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"--fleet {url} is no address of a server; expected http://HOST:PORT. Fix it."
        )
    return url
