"""Response stream: the outputs of one API request, merged on the event loop and sent as events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from calumma.generate.async_engine import RequestOutputStream
from calumma.generate.best_of import best_indices
from calumma.generate.events import TextPiece
from calumma.serve.api_errors import APIError, ErrorResponse, timed_out, to_api_error
from calumma.serve.logprobs import TokenLogprobs
from calumma.serve.logs import log_internal_error
from calumma.serve.output_processor import (
    EncodedImage,
    Finished,
    ImageFileEncoder,
    KeepAlive,
    OutputEvent,
    OutputProcessor,
)
from calumma.serve.protocol import CompletionUsage
from calumma.serve.request_context import RequestContext
from calumma.serve.request_params import GenerationParams
from calumma.vocabulary import TokenCounts

if TYPE_CHECKING:
    from calumma.serve.handler import RequestHandler


KEEPALIVE_SECONDS = 10.0
"""Time without an event after which a stream yields `KeepAlive`."""

_MAX_BACKLOG = 16
"""Events that a slow client may be late before it gets no more partial images."""

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Keep proxies from buffering events."""

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request is invalid; the message says why and how to fix it.",
        401: "No API key, or an unknown one.",
        404: "No such model.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        429: "Too many completions are in flight; Retry-After says when to retry.",
        503: "The server is stopping, or cannot sign an image.",
        504: "The completion took too long.",
    }.items()
}
"""Error responses of the endpoints, for the OpenAPI document."""


@dataclass
class CompletedOutput:
    """All of one output."""

    parts: list[str | bytes] = field(default_factory=list)
    """Texts and PNG files in reading order."""

    finished: Finished = field(default_factory=lambda: Finished("length", TokenLogprobs()))

    @property
    def text(self) -> str:
        """All texts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[bytes]:
        """All images, as PNG files."""
        return [part for part in self.parts if isinstance(part, bytes)]


class ResponseStream:
    """Outputs of one API request, merged: iterate over (choice index, event).

    It belongs to the event loop in which it was created. One task per output moves events into its
    queue, whether the client reads them or not.
    """

    def __init__(self, handler: "RequestHandler", context: RequestContext, num_permits: int) -> None:
        self.prompts: list[list[int]] = []
        """Token ids of each prompt."""

        self.seeds: list[int] = []
        """Seed of each choice."""

        self._handler, self._context = handler, context
        self._num_permits = num_permits
        self._started = time.perf_counter()
        self._queue: asyncio.Queue[tuple[int, OutputEvent] | BaseException | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._num_running = 0
        self._params: GenerationParams | None = None
        self._prompt_counts = TokenCounts()
        self._completion_counts: list[TokenCounts] = []
        self._finish_reasons: dict[int, str] = {}

    def start(
        self,
        prompts: list[list[int]],
        prompt_counts: TokenCounts,
        params: GenerationParams,
        image_encoder: ImageFileEncoder,
    ) -> None:
        """Submit the requests of encoded prompts.

        Raises:
            CalummaError: one can never be processed.
        """
        handler = self._handler
        self.prompts, self._prompt_counts, self._params = prompts, prompt_counts, params
        self.seeds = params.seeds * len(prompts)
        # A partial image cannot be moderated.
        interval = 0 if handler.filters else params.partial_image_interval
        requests = [request for ids in prompts for request in params.to_requests(ids)]
        outputs: list[RequestOutputStream] = []
        try:
            for request in requests:
                outputs.append(handler.backend.submit(request, interval))
        except BaseException:
            for output in outputs:
                output.abort()
            raise
        for index, output in enumerate(outputs):
            processor = OutputProcessor(
                output,
                image_encoder,
                filters=handler.filters,
                executor=handler.executor,
                return_tokens=params.return_tokens,
            )
            self._num_permits -= 1
            self._num_running += 1
            task = asyncio.create_task(self._pump(index, output, processor))
            task.add_done_callback(partial(self._on_done, output))
            self._tasks.append(task)

    async def _pump(self, index: int, output: RequestOutputStream, processor: OutputProcessor) -> None:
        """Move the events of one output into the queue."""
        submitted = time.perf_counter() - self._started
        async with aclosing(output.events(self._handler.executor)) as events:
            async for event in events:
                for processed in await processor.process(event):
                    is_partial = isinstance(processed, EncodedImage) and processed.partial_index is not None
                    if not (is_partial and self._queue.qsize() > _MAX_BACKLOG):
                        self._queue.put_nowait((index, processed))
                if processor.is_blocked:
                    output.abort()
                    break
        withheld, finished = await processor.finish()
        seconds = time.perf_counter() - self._started
        first_token_seconds = submitted + output.time_to_first_token
        counts = self._handler.record_finished(finished, first_token_seconds, seconds)
        self._completion_counts.append(counts)
        self._finish_reasons[index] = finished.reason
        for processed in [*withheld, finished]:
            self._queue.put_nowait((index, processed))

    def _on_done(self, output: RequestOutputStream, task: asyncio.Task[None]) -> None:
        self._num_running -= 1
        self._handler.release(1)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            output.abort()
            self._handler.metrics.request_success.labels("abort").inc()
        self._queue.put_nowait(error)

    async def __aiter__(self) -> AsyncIterator[tuple[int, OutputEvent]]:
        """Yield the events of all outputs as they come, each with the index of its choice.

        Raises:
            APIError: the outputs take too long, or the server stops.
            BaseException: the error that stopped the engine.
        """
        timeout_seconds = self._handler.config.limits.generation_timeout_seconds
        deadline = self._started + timeout_seconds
        while self._num_running or not self._queue.empty():
            remaining = deadline - time.perf_counter()
            if self._queue.empty() and remaining <= 0:
                self.close()
                raise timed_out("the completion", timeout_seconds, 504)
            try:
                async with asyncio.timeout(min(max(0.0, remaining), KEEPALIVE_SECONDS)):
                    item = await self._queue.get()
            except TimeoutError:
                yield 0, KeepAlive()
                continue
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                yield item

    async def collect(self) -> list[CompletedOutput]:
        """Wait for all outputs; returns the choices of each prompt in turn, whose seeds `seeds` becomes.

        With `best_of` these are the outputs with the highest reward, the best first.

        Raises:
            APIError: as in iteration.
            GenerationError: as `RequestHandler.score` raises it.
        """
        outputs = [CompletedOutput() for _ in self.seeds]
        async for index, event in self:
            output = outputs[index]
            if isinstance(event, TextPiece):
                if output.parts and isinstance(output.parts[-1], str):
                    output.parts[-1] += event.text
                else:
                    output.parts.append(event.text)
            elif isinstance(event, EncodedImage) and event.partial_index is None:
                output.parts.append(event.png)
            elif isinstance(event, Finished):
                output.finished = event
        assert self._params is not None, "the stream is not started"
        if (n := self._params.n) == (count := self._params.num_choices):
            return outputs
        rewards = await self._handler.score(self.prompts, outputs, self._params)
        starts = range(0, len(outputs), count)
        best = [start + index for start in starts for index in best_indices(rewards[start : start + count], n)]
        self.seeds = [self.seeds[index] for index in best]
        return [outputs[index] for index in best]

    def usage(self) -> CompletionUsage:
        """Return the tokens of all prompts and finished outputs; adds them to the access log."""
        prompt = self._prompt_counts
        completion = TokenCounts(
            text_tokens=sum(counts.text_tokens for counts in self._completion_counts),
            image_tokens=sum(counts.image_tokens for counts in self._completion_counts),
        )
        self._context.log_fields |= {
            "text_tokens": completion.text_tokens,
            "image_tokens": completion.image_tokens,
            "finish_reasons": [reason for _, reason in sorted(self._finish_reasons.items())],
        }
        return CompletionUsage(
            prompt_tokens=prompt.total,
            completion_tokens=completion.total,
            total_tokens=prompt.total + completion.total,
            prompt_tokens_details=prompt,
            completion_tokens_details=completion,
        )

    def abort(self, error: APIError) -> None:
        """Abort the outputs; iteration raises the error."""
        self._queue.put_nowait(error)
        self._cancel()

    def close(self) -> None:
        """End the stream: complete, or its client is gone. It may be called twice."""
        self._handler.release(self._num_permits)
        self._num_permits = 0
        self._handler.discard(self)
        self._cancel()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


def sse_event(value: dict[str, Any], event: str | None = None) -> bytes:
    """Format one event."""
    return format_sse_event(data_str=json.dumps(value, ensure_ascii=False), event=event)


async def event_stream(
    stream: ResponseStream,
    encode: Callable[[int, OutputEvent], bytes | None],
    *,
    header: Iterable[bytes] = (),
    trailer: Callable[[], Iterable[bytes]],
) -> AsyncIterator[bytes]:
    """Yield all events of a response, up to [DONE].

    `encode` formats an event of a choice, or returns None; `trailer` returns the last events. An
    error on the way becomes the last event, because the status is already sent.
    """
    try:
        for event in header:
            yield event
        async for index, output in stream:
            sent = KEEPALIVE_COMMENT if isinstance(output, KeepAlive) else encode(index, output)
            if sent is not None:
                yield sent
        for event in trailer():
            yield event
    except Exception as error:
        api_error = to_api_error(error)
        if api_error.status == 500:
            log_internal_error(error)
        yield sse_event(api_error.body())
        return
    yield format_sse_event(data_str="[DONE]")
