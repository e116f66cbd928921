"""An engine that never stops: one thread drives it; any thread may ask and listen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from calumma.errors import GenerationError
from calumma.generate.events import End, Event, Sample
from calumma.generate.model import Model, UserPart
from calumma.generate.output_decoder import OutputDecoder
from calumma.generate.params import EngineConfig, EngineStats, Request
from calumma.generate.request import RequestState

_JOIN_TIMEOUT_SECONDS = 5.0
"""For so long the engine's thread is waited for where it may hang for ever."""


class RequestOutputStream:
    """What one request gives, as it comes."""

    def __init__(
        self, model: Model, work: RequestState, teller: OutputDecoder, cancel: Callable[[], None]
    ):
        """`Live.ask` makes these.

        Args:
            model: makes the sample.
            work: the request.
            teller: makes the events, in the thread that listens.
            cancel: asks the engine's thread to stop.
        """
        self._model, self._work, self._teller, self._cancel = model, work, teller, cancel
        self._news: SimpleQueue[int | None] = SimpleQueue()
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._sample: Sample | None = None
        self._making = threading.Lock()
        self.token_ids: list[int] = []
        """The new ids that the events so far were made of."""

    def __iter__(self) -> Iterator[Event]:
        """The events, each once; waits for the next. Pictures are made in this thread.

        Raises:
            BaseException: what stopped the engine.
        """
        while (id_ := self._news.get()) is not None:
            self.token_ids.append(id_)
            yield from self._teller.push(id_)
        self._news.put(None)  # whoever listens again hears the end alone
        if self._error is None:
            yield from self._teller.flush()
        yield End(self.sample())

    def sample(self) -> Sample:
        """The whole answer; waits for its end.

        Raises:
            BaseException: what stopped the engine.
        """
        self._over.wait()
        if self._error is not None:
            raise self._error
        with self._making:
            if self._sample is None:
                self._sample = self._model.sample_of(self._work, self._teller.images)
        return self._sample

    def cancel(self) -> None:
        """Stop here; events and sample then end with what there is. Any thread may."""
        self._cancel()

    def put(self, id_: int) -> None:
        """The engine's thread tells of a new id."""
        self._news.put(id_)

    def finish(self, error: BaseException | None = None) -> None:
        """The engine's thread tells that nothing more will come."""
        self._error = error
        self._over.set()
        self._news.put(None)


class AsyncEngine:
    """One thread drives an engine of its own; any thread may ask and listen."""

    def __init__(self, model: Model, config: EngineConfig | None = None) -> None:
        """Start the thread.

        Args:
            model: whose decoder and tokenizers are used.
            budget: what the engine may hold; the model's where None.
        """
        self._model = model
        self._engine = model.new_engine(config or model.engine_config)
        self._stats = self._engine.stats
        self._wake = threading.Condition(threading.RLock())
        self._to_add: dict[RequestState, RequestOutputStream] = {}
        """Not yet begun."""

        self._to_abort: list[RequestState] = []
        """Not yet cancelled."""

        self._open = True
        self._over = threading.Event()
        """Set when the thread does no more, or what it may still do no longer counts."""

        self._error: BaseException | None = None
        self._running: dict[RequestState, RequestOutputStream] = {}
        """Begun and not over."""

        self._thread = threading.Thread(target=self._run_loop, name="calumma-engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """What the engine had to do after its latest step."""
        return self._stats

    @property
    def error(self) -> BaseException | None:
        """What stopped the engine, if anything has."""
        return self._error

    def generate(
        self,
        parts: Sequence[UserPart],
        *,
        answer: bool = True,
        codes_between: int | None = None,
        **options: Any,
    ) -> RequestOutputStream:
        """Hand in a request; the prompt's pictures are encoded in this thread.

        Args:
            parts: the prompt.
            answer: ask for an answer (end of turn behind the prompt); False continues it.
            codes_between: codes from one partial picture to the next; a grid row by default.
            options: fields of `Request`: max_new_tokens, seed, text, image, modality, max_images,
                image_first.

        Raises:
            GenerationError: the request cannot be answered, or this is closed.
            BaseException: what stopped the engine.
        """
        return self.submit(self._model.request(parts, answer=answer, **options), codes_between)

    def submit(self, request: Request, codes_between: int | None = None) -> RequestOutputStream:
        """Hand in a request whose prompt is ids already; otherwise as `ask`."""
        work = self._engine.make_request(request)
        teller = self._model.output_decoder(request, codes_between)
        made = RequestOutputStream(self._model, work, teller, partial(self._cancel, [work]))
        with self._wake:
            if not self._open:
                raise self._error or GenerationError(
                    "the engine is closed and takes no more requests; expected an open one. Start "
                    "it again."
                )
            self._to_add[work] = made
            self._wake.notify()
        return made

    def close(self, *, finish: bool = True) -> None:
        """Take no more requests, end the thread and wait for it.

        Args:
            finish: answer what was asked before; False cancels it.
        """
        with self._wake:
            self._open = False
            self._wake.notify()
            if not finish:
                self._cancel([*self._to_add, *self._running])
        self._over.wait()
        self._thread.join(_JOIN_TIMEOUT_SECONDS)

    def fail(self, error: BaseException) -> None:
        """End for good: whoever waits for an answer, or asks for one, gets this error.

        The engine's thread may, but others as well: one that knows what the engine hangs in.
        After the first error nothing changes.
        """
        with self._wake:
            self._open, self._error = False, self._error or error
            answers = [*self._to_add.values(), *self._running.values()]
            self._to_add, self._running = {}, {}
            self._wake.notify()
        for answer in answers:
            answer.finish(self._error)
        self._over.set()

    def _cancel(self, works: Sequence[RequestState]) -> None:
        """Have the engine's thread cancel requests between two steps."""
        with self._wake:
            self._to_abort += works
            self._wake.notify()

    def _run_loop(self) -> None:
        try:
            while self._process_commands():
                for work, id_ in self._engine.step():
                    self._running[work].put(id_)
                self._end_those_that_are_done()
                self._stats = self._engine.stats
        except BaseException as error:
            self.fail(error)
        self._over.set()

    def _end_those_that_are_done(self) -> None:
        with self._wake:
            done = [self._running.pop(work) for work in list(self._running) if work.is_finished]
        for answer in done:
            answer.finish()

    def _process_commands(self) -> bool:
        """Begin and cancel what is asked, waiting where nothing else is to do; whether to go on."""
        with self._wake:
            while self._open and not (self._to_add or self._to_abort or self._running):
                self._wake.wait()
            for work, answer in self._to_add.items():
                self._running[work] = answer
                self._engine.add_request(work)
            for work in self._to_abort:
                self._engine.abort(work)
            self._to_add, self._to_abort = {}, []
            return self._open or bool(self._running)
