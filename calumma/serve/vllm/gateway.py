"""Backend of vLLM servers: they generate the token ids; prompts and images are handled here.

Each request goes, as token ids, to one of several servers with vLLM's completions API, which stream
token ids back. The image grammar runs inside vLLM (`logits_processor.py`) and is checked here
again, so that a server started without it is reported.
"""

import contextlib
import http.client
import itertools
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any
from urllib.parse import urlsplit

from calumma.errors import ConfigError
from calumma.generate.async_engine import RequestOutputStream
from calumma.generate.params import EngineStats, Request
from calumma.generate.request import RequestState
from calumma.serve.api_errors import APIError, server_stopping
from calumma.serve.vllm.extra_args import decode_logprobs, vllm_extra_args
from calumma.serve.vllm.frontend_model import FrontendModel

_READ_TIMEOUT_SECONDS = 600.0
"""Longest time between two tokens of a server."""


class VLLMBackend:
    """Distributes requests over vLLM servers in turn. Each has a thread that reads its response."""

    def __init__(self, model: FrontendModel, urls: Sequence[str], served_model_name: str) -> None:
        """Check the URLs; no server is contacted yet.

        Raises:
            ConfigError: a URL is invalid.
        """
        self.model, self.served_model_name = model, served_model_name
        for url in urls:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
                raise ConfigError(f"--url {url} is not the URL of a server; expected http://HOST:PORT. Fix it.")
        self.urls = itertools.cycle(urls)
        self.error: BaseException | None = None
        self._running: dict[RequestOutputStream, threading.Thread] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def stats(self) -> EngineStats:
        """Number of running requests; the KV caches are in the servers."""
        count = len(self._running)
        return EngineStats(
            num_running=count, num_waiting=0, num_sequences=count, num_reserved_tokens=0, max_cached_tokens=0
        )

    def submit(self, request: Request, partial_image_interval: int | None = None) -> RequestOutputStream:
        """Start a request.

        Raises:
            GenerationError: it does not fit the model's context.
            APIError: the backend is closed.
        """
        state = self.model.state_of(request)
        completion = _CompletionStream(next(self.urls), _request_body(request, state, self.served_model_name))
        decoder = self.model.output_decoder(request, partial_image_interval)
        output = RequestOutputStream(self.model, state, decoder, completion.close)
        thread = threading.Thread(target=self._run, args=(completion, state, output), daemon=True)
        with self._lock:
            if self._is_closed:
                raise server_stopping()
            self._running[output] = thread
        thread.start()
        return output

    def _run(self, completion: "_CompletionStream", state: RequestState, output: RequestOutputStream) -> None:
        error: BaseException | None = None
        try:
            for id_, values in () if state.is_finished else completion.tokens():
                if state.is_finished or not state.grammar.allows(id_):
                    raise _server_failed(completion.url, f"returned the disallowed token {id_}")
                if values[id_] < 0:
                    raise _server_failed(completion.url, "returned log probabilities before guidance and grammar")
                put_token(output, state, id_, values)
        except (OSError, ValueError, LookupError, http.client.HTTPException) as reason:
            if not completion.is_closed:
                error = _server_failed(completion.url, f"failed ({type(reason).__name__})")
        except APIError as api_error:
            error = api_error
        finally:
            if not state.is_finished:
                state.finish("abort" if completion.is_closed else None)
            output.finish(error)
            with self._lock:
                del self._running[output]

    def close(self, *, finish: bool = True) -> None:
        """Accept no more requests; finish the running ones, or abort them."""
        with self._lock:
            self._is_closed = True
            running = dict(self._running)
        for output, thread in running.items():
            if not finish:
                output.abort()
            thread.join()


def put_token(output: RequestOutputStream, state: RequestState, id_: int, values: Mapping[int, float]) -> None:
    """Append an allowed token, with the log probabilities that vLLM returned for it and others."""
    logprob, top = decode_logprobs(values, id_, state.request.num_logprobs)
    state.append_token(id_, logprob, top)
    output.put(id_)


def num_vllm_logprobs(request: Request) -> int:
    """Return how many tokens vLLM returns the log probabilities of: the sampled one takes a place."""
    return request.num_logprobs + 1 if request.num_logprobs else 0


def _request_body(request: Request, state: RequestState, model_name: str) -> dict[str, Any]:
    """Build the body for vLLM's completions API: the logits processor samples, not vLLM itself.

    Values that change nothing are sent too: a model folder may bring others as its defaults.
    """
    return {
        "model": model_name,
        "prompt": list(request.prompt_token_ids),
        "max_tokens": state.grammar.max_remaining_tokens,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(request.stop_token_ids),
        "stream": True,
        "logprobs": num_vllm_logprobs(request),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "vllm_xargs": vllm_extra_args(request),
    }


class _CompletionStream:
    """One streamed completion of a vLLM server."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        self.url, self.body = url, body
        self.is_closed = False
        parts = urlsplit(url)
        is_https = parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_https else http.client.HTTPConnection
        self.path = f"{parts.path.rstrip('/')}/v1/completions"
        self.connection = kind(parts.netloc, timeout=_READ_TIMEOUT_SECONDS)
        self.socket: socket.socket | None = None

    def tokens(self) -> Iterator[tuple[int, dict[int, float]]]:
        """Yield each token id with the values of it and of the most likely tokens."""
        with contextlib.closing(self.connection) as connection:
            connection.connect()
            self.socket = connection.sock
            headers = {"Content-Type": "application/json"}
            connection.request("POST", self.path, json.dumps(self.body), headers)
            with connection.getresponse() as response:
                if response.status != 200:
                    raise _server_failed(self.url, f"responded with status {response.status}")
                for line in response:
                    if self.is_closed or line.strip() == b"data: [DONE]":
                        return
                    if line.startswith(b"data: "):
                        yield from _tokens_of_chunk(json.loads(line[6:]))

    def close(self) -> None:
        """Disconnect, which makes the server abort the request. Any thread may call it."""
        self.is_closed = True
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)


def _tokens_of_chunk(chunk: dict[str, Any]) -> Iterator[tuple[int, dict[int, float]]]:
    for choice in chunk["choices"][:1]:
        token_ids = choice.get("token_ids") or []
        logprobs = choice.get("logprobs") or {}
        values = (logprobs.get("token_logprobs") or [])[: len(token_ids)]
        tops = (logprobs.get("top_logprobs") or [])[: len(token_ids)]
        for id_, value, top in zip_longest(token_ids, values, tops):
            # Keys are "token_id:5"; vLLM writes -inf as -9999.
            named = {int(key.rpartition(":")[2]): number for key, number in (top or {}).items() if number > -9999}
            yield id_, {**named, id_: float(value or 0.0)}


def _server_failed(url: str, what: str) -> APIError:
    return APIError(
        502,
        f"the vLLM server at {urlsplit(url).netloc} {what}; expected tokens of the image grammar. "
        "Start it with the options of docs/vllm.md, and see its log.",
        "backend_failed",
    )
