"""Asynchronous engine: one thread runs an engine; any thread or event loop uses it."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from calumma.errors import GenerationError
from calumma.generate.events import End, Event, FinishReason, Sample, TokenUsage
from calumma.generate.model import Model
from calumma.generate.output_decoder import OutputDecoder
from calumma.generate.params import EngineConfig, EngineStats, Request
from calumma.generate.request import RequestState
from calumma.generate.user_parts import UserPart

_JOIN_TIMEOUT_SECONDS = 5.0
"""Seconds to wait for the engine's thread when it may hang."""


class RequestOutputStream:
    """Output of one request, for one consumer: iterate over it, or over `events` on an event loop.

    The consumer detokenizes and decodes images; the engine's thread only hands over tokens.
    """

    def __init__(self, model: Model, state: RequestState, decoder: OutputDecoder, abort: Callable[[], None]) -> None:
        """Create an empty stream; `abort` asks the backend to finish the request."""
        self._model, self._state, self._decoder, self._abort = model, state, decoder, abort
        self._updated = threading.Condition()
        self._unread: deque[int] = deque()
        self._is_finished = False
        self._error: BaseException | None = None
        self._notify: Callable[[], None] | None = None
        self._sample: Sample | None = None
        self.token_ids: list[int] = []
        """Tokens that the events so far were made of."""

    def __iter__(self) -> Iterator[Event]:
        """Yield the events and `End`, waiting for tokens; raises the engine's error."""
        while (id_ := self._next_token()) is not None:
            yield from self._push(id_)
        if self._error is None:
            yield from self._decoder.flush()
        yield End(self.sample())

    async def events(self, executor: Executor | None = None) -> AsyncGenerator[Event, None]:
        """Yield the events on an event loop, without `End` and without a thread per stream.

        The engine's thread wakes the loop at most once for all tokens that are not yet read. Text
        is detokenized on the loop, images are decoded in the executor. Closing the iterator aborts
        the request. Raises the engine's error.
        """
        loop = asyncio.get_running_loop()
        updated = asyncio.Event()
        updated.set()
        self._notify = partial(self._wake_loop, loop, updated)
        is_finished = False
        try:
            while not is_finished and not self._decoder.is_stopped:
                await updated.wait()
                updated.clear()
                is_finished = self._is_finished
                while (id_ := self._next_token(wait=False)) is not None:
                    if self._decoder.decodes_image(id_):
                        events = await loop.run_in_executor(executor, self._push, id_)
                    else:
                        events = self._push(id_)
                    for event in events:
                        yield event
        finally:
            self._notify = None
            if not is_finished:
                self.abort()
        if self._error is not None:
            raise self._error
        for event in self._decoder.flush():
            yield event

    def sample(self) -> Sample:
        """Wait for the end and return the sample; raises the engine's error."""
        with self._updated:
            self._updated.wait_for(lambda: self._is_finished)
            if self._error is not None:
                raise self._error
            if self._sample is None:
                # The decoder of a consumer that has not read all is in use: decode from the start.
                decoder = None if self._unread else self._decoder
                self._sample = self._model.sample_of(self._state, decoder)
            return self._sample

    @property
    def finish_reason(self) -> FinishReason | None:
        """Reason of the end; None before it."""
        return "stop" if self._decoder.is_stopped else self._state.finish_reason

    @property
    def logprobs(self) -> list[float]:
        """One for each of `token_ids`."""
        return self._state.logprobs[: len(self.token_ids)]

    @property
    def top_logprobs(self) -> list[dict[int, float]]:
        """The most likely tokens at each of `token_ids`."""
        return self._state.top_logprobs[: len(self.token_ids)]

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the arrival of the request to its first token."""
        return self._state.time_to_first_token

    @property
    def usage(self) -> TokenUsage:
        """Tokens of the prompt and of `token_ids`, by modality."""
        return self._model.usage_of(self._state.request.prompt_token_ids, self.token_ids)

    def abort(self) -> None:
        """Finish the request; events and sample end with the output so far. Any thread may."""
        self._abort()

    def put(self, id_: int) -> None:
        """Hand over a new token, from the engine's thread."""
        with self._updated:
            is_first = not self._unread
            self._unread.append(id_)
            self._updated.notify_all()
        if is_first and self._notify is not None:
            self._notify()

    def finish(self, error: BaseException | None = None) -> None:
        """End the stream, from the engine's thread."""
        with self._updated:
            self._error, self._is_finished = error, True
            self._updated.notify_all()
        if self._notify is not None:
            self._notify()

    def _push(self, id_: int) -> list[Event]:
        if self._decoder.is_stopped:
            return []
        self.token_ids.append(id_)
        events = self._decoder.push(id_)
        if self._decoder.is_stopped:
            self.abort()
        return events

    def _next_token(self, *, wait: bool = True) -> int | None:
        with self._updated:
            if wait:
                self._updated.wait_for(lambda: self._unread or self._is_finished)
            return self._unread.popleft() if self._unread else None

    def _wake_loop(self, loop: asyncio.AbstractEventLoop, updated: asyncio.Event) -> None:
        try:
            loop.call_soon_threadsafe(updated.set)
        except RuntimeError:  # the loop is closed: no consumer is left
            self.abort()


class AsyncEngine:
    """Runs an engine of its own in a thread; any thread may submit requests and read outputs."""

    def __init__(self, model: Model, config: EngineConfig | None = None) -> None:
        """Start the thread; the engine's configuration is the model's by default."""
        self.model = model
        self._engine = model.new_engine(config or model.engine_config)
        self._stats = self._engine.stats
        self._wake = threading.Condition(threading.RLock())
        self._to_add: dict[RequestState, RequestOutputStream] = {}
        self._to_abort: list[RequestState] = []
        self._running: dict[RequestState, RequestOutputStream] = {}
        self._is_open = True
        self._is_over = threading.Event()
        """Set when the thread ends, or its results no longer matter."""

        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run_loop, name="calumma-engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """Load of the engine after its latest step."""
        return self._stats

    @property
    def error(self) -> BaseException | None:
        """Error that stopped the engine, if any."""
        return self._error

    def generate(
        self, parts: Sequence[UserPart], *, partial_image_interval: int | None = None, **options: Any
    ) -> RequestOutputStream:
        """Submit a prompt, whose images are encoded in this thread; arguments as `Model.stream`."""
        return self.submit(self.model.request(parts, **options), partial_image_interval)

    def submit(self, request: Request, partial_image_interval: int | None = None) -> RequestOutputStream:
        """Submit a request.

        Raises:
            GenerationError: the request exceeds the engine's capacity, or the engine is closed.
            BaseException: the error that stopped the engine.
        """
        state = self._engine.make_request(request)
        decoder = self.model.output_decoder(request, partial_image_interval)
        stream = RequestOutputStream(self.model, state, decoder, partial(self._abort, [state]))
        with self._wake:
            if not self._is_open:
                raise self._error or GenerationError(
                    "the engine is closed and takes no more requests; expected an open one. Start it again."
                )
            self._to_add[state] = stream
            self._wake.notify()
        return stream

    def close(self, *, finish: bool = True) -> None:
        """Take no more requests, finish or abort the submitted ones, and wait for the thread."""
        with self._wake:
            self._is_open = False
            self._wake.notify()
            if not finish:
                self._abort([*self._to_add, *self._running])
        self._is_over.wait()
        self._thread.join(_JOIN_TIMEOUT_SECONDS)

    def fail(self, error: BaseException) -> None:
        """Stop for good, from any thread: streams and later requests raise the first error."""
        with self._wake:
            self._is_open, self._error = False, self._error or error
            streams = [*self._to_add.values(), *self._running.values()]
            self._to_add, self._running = {}, {}
            self._wake.notify()
        for stream in streams:
            stream.finish(self._error)
        self._is_over.set()

    def _abort(self, states: Sequence[RequestState]) -> None:
        """Have the engine's thread abort requests between two steps."""
        with self._wake:
            self._to_abort += states
            self._wake.notify()

    def _run_loop(self) -> None:
        try:
            self._engine.warm_up()
            while self._process_commands():
                for state, id_ in self._engine.step():
                    self._running[state].put(id_)
                self._finish_streams()
                self._stats = self._engine.stats
        except BaseException as error:
            self.fail(error)
        self._is_over.set()

    def _finish_streams(self) -> None:
        with self._wake:
            finished = [state for state in self._running if state.is_finished]
            streams = [self._running.pop(state) for state in finished]
        for stream in streams:
            stream.finish()

    def _process_commands(self) -> bool:
        """Add and abort requests, waiting while there is nothing to do; False at the end."""
        with self._wake:
            while self._is_open and not (self._to_add or self._to_abort or self._running):
                self._wake.wait()
            for state, stream in self._to_add.items():
                self._running[state] = stream
                self._engine.add_request(state)
            for state in self._to_abort:
                self._engine.abort(state)
            self._to_add, self._to_abort = {}, []
            return self._is_open or bool(self._running)
