"""The desk: takes so many questions and no more, and carries answers from threads to the loop.

loop      Talk.read -> Talk.ask ----------> async for (number, piece)
             |             |                        ^
threads   prompt -> ids    Narrator of each answer -+   one thread an answer
                           |
engine                     Live: one thread for all
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import PIL.Image

from calumma.generate.async_engine import RequestOutputStream
from calumma.generate.params import EngineStats, Request
from calumma.serve.api_errors import APIError, queue_full, server_stopping, timed_out
from calumma.serve.config import ServeLimits
from calumma.serve.moderation import ContentFilter
from calumma.serve.output_processor import Chosen, Ended, Growing, Narrator, Piece, Quiet
from calumma.serve.prometheus_metrics import Metrics
from calumma.serve.prompt_encoder import Prompt, PromptEncoder

QUIET_SECONDS = 10.0
"""After so long without news, a listener is told that there are none."""

_MOST_BEHIND = 16
"""Pieces that a slow client may be behind before it gets no more partial pictures."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How the answers to one request are told."""

    to_png: Callable[[PIL.Image.Image], bytes]
    finish: Callable[[PIL.Image.Image], bytes] | None = None
    """The file of a picture that is whole, where that is another one than of one that grows."""

    stops: Sequence[str] = ()
    codes_between: int | None = None


class Engine(Protocol):
    """What answers requests: an engine in this process, or others behind addresses."""

    @property
    def load(self) -> EngineStats:
        """What it has to do."""

    @property
    def error(self) -> BaseException | None:
        """What stopped it, if anything has."""

    def take(self, request: Request, codes_between: int | None = None) -> RequestOutputStream:
        """Begin to answer a request."""

    def close(self, *, finish: bool = True) -> None:
        """Take no more requests, and wait for its threads."""


class RequestHandler:
    """Takes in requests and gives out answers."""

    def __init__(
        self,
        live: Engine,
        scribe: PromptEncoder,
        limits: ServeLimits,
        metrics: Metrics,
        filters: Sequence[ContentFilter] = (),
    ) -> None:
        self.live, self.scribe, self.limits = live, scribe, limits
        self.metrics, self.filters = metrics, filters
        self.threads = ThreadPoolExecutor(
            limits.max_concurrent_requests, thread_name_prefix="calumma-answer"
        )
        self.under_way = 0
        """Answers that are admitted and not yet over."""

        self.stopping = False
        """Whether no more are taken."""

        self._talks: set[ResponseStream] = set()
        self._counting = threading.Lock()
        self._usual_seconds = 1.0

    def admit(self, count: int) -> ResponseStream:
        """Take in a request for so many answers.

        Raises:
            Refusal: there are too many under way, or the server is stopping.
        """
        if self.stopping:
            raise server_stopping()
        with self._counting:
            if self.under_way + count > self.limits.max_concurrent_requests:
                raise queue_full(self.under_way, self._wait())
            self.under_way += count
            self.metrics.under_way.set(self.under_way)
        talk = ResponseStream(self, count)
        self._talks.add(talk)
        return talk

    def _wait(self) -> float:
        """Seconds until a place may be free: an answer's usual time, shared by those that run."""
        running = max(1, self.live.load.num_running)
        return min(60.0, max(1.0, self._usual_seconds * self.under_way / running / 2))

    def release(self, count: int) -> None:
        """So many answers are over."""
        with self._counting:
            self.under_way -= count
            self.metrics.under_way.set(self.under_way)

    def forget(self, talk: ResponseStream) -> None:
        """A request is over."""
        self._talks.discard(talk)

    def note(self, ended: Ended, first: float, seconds: float) -> None:
        """Count a finished answer."""
        if ended.sample.token_ids:
            self.metrics.first.observe(first)
        self.metrics.whole.observe(seconds)
        self.metrics.answers.labels(ended.reason).inc()
        self._usual_seconds += (seconds - self._usual_seconds) / 8

    def stop_taking(self) -> None:
        """Take no more requests; what is under way goes on."""
        self.stopping = True

    def hand_back(self) -> None:
        """End what is under way, and tell the clients so."""
        self.stopping = True
        for talk in list(self._talks):
            talk.end(server_stopping())

    def close(self) -> None:
        """End all; nobody may ask any more."""
        self.hand_back()
        self.live.close(finish=False)
        self.threads.shutdown(wait=True)
        self.scribe.readers.close()


class ResponseStream:
    """One request and its answers. It belongs to the event loop that it was made in."""

    def __init__(self, desk: RequestHandler, count: int) -> None:
        self.desk = desk
        self.loop = asyncio.get_running_loop()
        self.places = count
        """Places at the desk that no thread has taken over yet."""

        self.answers: list[RequestOutputStream] = []
        self.started = time.perf_counter()
        self.gone = False
        self._pieces: deque[tuple[int, Piece] | BaseException] = deque()
        self._news = asyncio.Event()
        self._running = 0

    async def read(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt.

        Raises:
            Refusal: it cannot be read, or not in time.
        """
        limits = self.desk.limits
        seconds = limits.request_timeout_seconds + limits.image_timeout_seconds * max(
            1, len(prompt.urls)
        )
        try:
            async with asyncio.timeout(seconds):
                return await self.loop.run_in_executor(
                    self.desk.threads, self.desk.scribe.encode, prompt
                )
        except TimeoutError as error:
            raise timed_out("reading the prompt", seconds, 504) from error

    def ask(self, requests: Sequence[Request], manner: Manner) -> None:
        """Hand requests to the engine, as many as places were taken.

        Raises:
            CalummaError: one cannot be answered.
        """
        for request in requests:
            self.answers.append(self.desk.live.take(request, manner.codes_between))
        for number, answer in enumerate(self.answers):
            narrator = Narrator(
                answer, manner.to_png, manner.stops, self.desk.filters, manner.finish
            )
            self.places -= 1
            self._running += 1
            self.desk.threads.submit(self._follow, number, narrator)

    def _follow(self, number: int, narrator: Narrator) -> None:
        """In a thread: send an answer's pieces to the loop."""
        first = 0.0
        last: BaseException | None = None
        try:
            for piece in narrator.pieces():
                now = time.perf_counter() - self.started
                first = first or (now if isinstance(piece, Chosen) else 0.0)
                if isinstance(piece, Ended):
                    self.desk.note(piece, first, now)
                if not (isinstance(piece, Growing) and len(self._pieces) > _MOST_BEHIND):
                    self._send((number, piece))
        except BaseException as error:
            last = error
        finally:
            self.desk.release(1)
            self._send(last)

    def _send(self, piece: tuple[int, Piece] | BaseException | None) -> None:
        """From a thread: hand a piece to the loop; None where an answer is over."""
        try:
            self.loop.call_soon_threadsafe(self._receive, piece)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._cancel()

    def _receive(self, piece: tuple[int, Piece] | BaseException | None) -> None:
        if not isinstance(piece, tuple):
            self._running -= 1
        if piece is not None and not self.gone:
            self._pieces.append(piece)
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all answers, each with its answer's number, as they come.

        Raises:
            Refusal: they take too long, or the server stops.
            BaseException: what stopped the engine.
        """
        end = self.started + self.desk.limits.generation_timeout_seconds
        while self._running or self._pieces:
            if self._pieces:
                piece = self._pieces.popleft()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                continue
            left = end - time.perf_counter()
            if left <= 0:
                self.close()
                raise timed_out("the answer", self.desk.limits.generation_timeout_seconds, 504)
            self._news.clear()
            try:
                async with asyncio.timeout(min(left, QUIET_SECONDS)):
                    await self._news.wait()
            except TimeoutError:
                yield 0, Quiet()

    def end(self, why: APIError) -> None:
        """Stop, and have whoever listens told why."""
        if not self.gone:
            self._pieces.append(why)
            self._news.set()
            self._cancel()

    def close(self) -> None:
        """The client has all, or is gone: what still runs is cancelled. It may be called twice."""
        self.gone = True
        self._pieces.clear()
        self.desk.release(self.places)
        self.places = 0
        self.desk.forget(self)
        self._cancel()

    def _cancel(self) -> None:
        for answer in self.answers:
            answer.cancel()
